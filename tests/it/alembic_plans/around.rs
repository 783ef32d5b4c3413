//! Around a proof: what it clears away, what stops it, and where it is kept.

use super::*;

#[tokio::test]
async fn a_proof_clears_away_what_a_killed_one_left() {
    let fleet = Fleet::new(ENV, &[("a", TABLE)]).await;
    run(
        &mut fleet.admin().await,
        &format!(
            "create schema herder_shadow_0000abcd_1700000000_00000000_a;
             create table herder_shadow_0000abcd_1700000000_00000000_a.t ();
             create schema herder_shadow_{}_9900000000_00000000_b",
            fleet.owner
        ),
    )
    .await;
    fleet.up(&[], "a").await.expect("a proof");
}

#[tokio::test]
async fn a_role_that_may_make_no_schema_gets_live_migrations() {
    let fleet = Fleet::new(ENV, &[("a", TABLE)]).await;
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    run(&mut fleet.admin().await, &format!("create role {role} login")).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let url = fleet.url.expose().replacen("postgres@", &format!("{role}@"), 1);
    let url = DatabaseUrl::parse(&url).expect("a URL");
    assert_eq!(url.user().as_deref(), Some(role.as_str()));
    match fleet.prove(&url, &plan, Some("a")).await.expect("a verdict") {
        Verdict::Unproven { why } => assert!(
            why.contains("needs a scratch schema in") && why.contains("(42501)"),
            "{why}"
        ),
        verdict => panic!("it may not: {verdict:?}"),
    }
}

#[tokio::test]
async fn a_proof_that_is_told_to_stop_leaves_nothing() {
    let fleet = Fleet::new(ENV, &[("a", "op.execute('select pg_sleep(20)')")]).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let cancel = CancellationToken::new();
    let limits = LimitsConfig::default();
    let ground = Ground {
        url: &fleet.url,
        place: &fleet.place(),
        limits: &limits,
        cancel: &cancel,
        owner: &fleet.owner,
    };
    let mut admin = fleet.admin().await;
    let stop = async {
        let busy = "select count(*) from pg_stat_activity where application_name like 'herder/shadow/%' and query ~ 'pg_sleep'
                    and datname = current_database()";
        while sqlx::query_scalar::<_, i64>(busy)
            .fetch_one(&mut admin)
            .await
            .expect("a look")
            == 0
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        cancel.cancel();
    };
    let (proven, ()) = tokio::join!(fleet.runner.prove(&plan, Some("a"), ground), stop);
    assert!(matches!(proven, Err(TenantError::Cancelled)), "{proven:?}");
    fleet.is_clean().await;
}

/// A machine may go to sleep in the middle of a proof. Its connection must not outlive that by much, whatever is done over it.
#[tokio::test]
async fn the_connections_of_a_proof_have_the_limits_of_all_of_our_own() {
    let fleet = Fleet::new(ENV, &[("a", TABLE)]).await;
    let mut admin = fleet.admin().await;
    run(
        &mut admin,
        "create schema watch;
         create table watch.seen (label text, setting text);
         create function watch.look() returns event_trigger language plpgsql as $$ begin
           insert into watch.seen
           select current_setting('application_name'), name || ' ' || setting from pg_settings
           where name in ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'tcp_keepalives_idle');
         end $$;
         create event trigger watch on ddl_command_start when tag in ('CREATE SCHEMA', 'DROP SCHEMA')
           execute function watch.look()",
    )
    .await;
    fleet.up(&[], "a").await.expect("a proof");
    let seen: Vec<(String, String)> =
        sqlx::query_as("select distinct label, setting from watch.seen order by setting")
            .fetch_all(&mut admin)
            .await
            .expect("what was seen");
    let label = format!("herder/shadow/{}", fleet.owner);
    let limits = [
        "idle_in_transaction_session_timeout 20000",
        "idle_session_timeout 20000",
        "tcp_keepalives_idle 10",
    ];
    assert_eq!(seen, limits.map(|limit| (label.clone(), limit.to_owned())));
}

#[tokio::test]
async fn the_config_has_the_last_word() {
    let reads = [("a", "op.get_bind().execute(sa.text('select 1')).scalar()")];
    let never = Fleet::with(ENV, &[("a", TABLE)], "plan = \"never\"").await;
    let why = never.up(&[], "a").await.expect_err("never");
    assert_eq!(why, "[runner] plan = \"never\"");
    let always = Fleet::with(ENV, &reads, "plan = \"always\"").await;
    let error = always
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect_err("it cannot");
    assert_eq!(
        error.to_string(),
        "no plan can be made: revision a: it reads what a statement found"
    );
}

#[tokio::test]
async fn a_proof_is_kept_under_all_that_it_hangs_on() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "op.execute('select 1')")]).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &["a"], Some("b"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let (limits, cancel) = (LimitsConfig::default(), CancellationToken::new());
    let ground = Ground {
        url: &fleet.url,
        place: &fleet.place(),
        limits: &limits,
        cancel: &cancel,
        owner: &fleet.owner,
    };
    let key = async || {
        let key = fleet.runner.proof_key(&plan, Some("b"), ground).await;
        key.expect("a key").expect("the same rendering")
    };
    let first = key().await;
    assert_eq!(first, key().await);
    let env = fleet
        ._folder
        .as_ref()
        .expect("a folder")
        .path()
        .join("migrations/env.py");
    std::fs::write(env, format!("{ENV}\n# touched\n")).expect("env.py");
    assert_ne!(first, key().await);
}

#[tokio::test]
async fn the_isolation_that_a_transaction_has_anyway_is_no_setting() {
    for (level, is_ours) in [("READ COMMITTED", true), ("REPEATABLE READ", false)] {
        let engine = format!("poolclass=pool.NullPool, isolation_level='{level}'");
        let env = ENV.replace("poolclass=pool.NullPool", &engine);
        let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
        let plan = fleet.up(&[], "a").await;
        let why = plan.err().unwrap_or_default();
        assert_eq!(
            why.contains("transaction_isolation repeatable read"),
            !is_ours,
            "{why}"
        );
        assert_eq!(why.is_empty(), is_ours, "{why}");
    }
}

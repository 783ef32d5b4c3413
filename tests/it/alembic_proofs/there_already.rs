//! What a tenant has already, or its search path, that a revision would make: by which plan, or by none.

use super::*;

/// Two tenants, of which t002 has the type already that the last revision makes where it is missing.
async fn half_with_the_type(setup: Setup) -> Fleet {
    let fleet = setup.plans(steps(2)).start().await;
    let body = "from alembic import op\nfrom sqlalchemy.dialects import postgresql as pg\n\
                revision = '20250203'\ndown_revision = '20250102'\n\n\
                def upgrade():\n    pg.ENUM('a', 'b', name='kind').create(op.get_bind(), checkfirst=True)\n\n\
                def downgrade():\n    pass\n";
    fleet.project().file("versions/20250203_step.py", body);
    tell(&fleet.home, "create type t002.kind as enum ('a', 'b')").await;
    fleet
}

/// A revision that looks first has a plan that does. Whoever has the thing already is left to the tool.
#[tokio::test]
async fn what_is_there_already_is_left_to_the_tool() {
    let fleet = half_with_the_type(Setup::schemas(2)).await;
    let shown = fleet.herder(&["plan", "--sql"]).await.expect(0).all();
    let look = "if pg_catalog.to_regtype('\"kind\"') is not null then";
    assert!(shown.contains(look), "{shown}");
    let rehearsal = fleet
        .herder(&["rehearse", "--all", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let forecasts = rehearsal["tenants"].as_array().expect("tenants");
    let left: Vec<_> = forecasts
        .iter()
        .filter(|tenant| tenant["forecast"] == "not_rehearsed")
        .collect();
    assert!(
        left.len() == 1
            && left[0]["why"]
                .as_str()
                .is_some_and(|why| why.contains("its plan does not fit there")),
        "{rehearsal:#}"
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 1));
}

/// A fleet whose last revision makes something where it is missing. The first tenant is there already, by a plan: a proof is kept.
async fn after_one_that_looked(steps: &[Step], body: &str) -> Fleet {
    let setup = Setup::schemas(3).plans(steps.to_vec());
    let fleet = setup.start().await;
    let down = steps.last().map_or("", |step| step.id);
    let body = format!(
        "from alembic import op\nimport sqlalchemy as sa\nfrom sqlalchemy.dialects import postgresql as pg\n\
         revision = '20250102'\ndown_revision = '{down}'\n\ndef upgrade():\n    bind = op.get_bind()\n{body}\n\
         def downgrade():\n    pass\n"
    );
    fleet.project().file("versions/20250102_step.py", &body);
    let first = ["upgrade", "--to", "20250102", "--tenant", "t001", "--local", "1"];
    fleet.herder(&first).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 0));
    fleet
}

/// The tables and enums of a tenant's own that its last revision made.
async fn own(fleet: &Fleet, schema: &str) -> Vec<String> {
    let asked =
        "select typname::text from pg_type where typnamespace = to_regnamespace($1) and typtype in ('c', 'e')
                 and typname not in ('alembic_version', 'effects') order by typname collate \"C\"";
    let asked = sqlx::query_scalar(asked).bind(schema);
    asked.fetch_all(&fleet.home).await.expect("a look")
}

/// Live Alembic looks along the whole search_path. Whoever finds there what the revision makes is left to it, though the plan was proven
/// when nobody did.
#[tokio::test]
async fn what_the_search_path_has_by_now_is_made_by_no_plan() {
    let tables = "    metadata = sa.MetaData()\n    \
                  for name in ('plain', 'Odd one'):\n        \
                  sa.Table(name, metadata, sa.Column('kind', sa.Enum('a', name='kind')))\n    \
                  metadata.create_all(bind)\n";
    for (body, there, of_its_own) in [
        (tables, "create table public.plain ()", &["Odd one", "kind"][..]),
        (
            tables,
            "create type public.kind as enum ('a')",
            &["Odd one", "plain"],
        ),
        (
            "    pg.ENUM('a', name='Kind').create(bind)\n",
            "create type public.\"Kind\" as enum ('a')",
            &[],
        ),
    ] {
        let fleet = after_one_that_looked(&steps(1), body).await;
        tell(&fleet.home, there).await;
        fleet
            .herder(&["upgrade", "--tenant", "t002", "--local", "1"])
            .await
            .expect(0);
        assert_eq!(by_plan_and_live(&fleet).await, (0, 1), "{there}");
        let tried = "select count(*) from herder.attempt where result = 'replanned'";
        assert_eq!(fleet.ask::<i64>(tried).await, 1, "{there}");
        assert_eq!(
            fleet.ask::<i64>("select count(*) from herder.proof").await,
            1,
            "{there}"
        );
        fleet.configure(|config| config["runner"]["plan"] = "never".into());
        fleet
            .herder(&["upgrade", "--tenant", "t003", "--local", "1"])
            .await
            .expect(0);
        for tenant in ["t002", "t003"] {
            assert_eq!(own(&fleet, tenant).await, of_its_own, "{tenant}, {there}");
        }
    }
}

/// A revision in pieces behind it changes nothing: none of them is begun.
#[tokio::test]
async fn what_the_search_path_has_is_left_to_the_tool_ahead_of_a_revision_in_pieces() {
    let body = "    pg.ENUM('a', name='kind').create(bind)\n";
    let fleet = after_one_that_looked(&steps(1), body).await;
    let torn = "from alembic import op\nrevision = '20250203'\ndown_revision = '20250102'\n\n\
                def upgrade():\n    with op.get_context().autocommit_block():\n        \
                op.execute('create index concurrently i on effects (step)')\n\n\
                def downgrade():\n    pass\n";
    fleet.project().file("versions/20250203_step.py", torn);
    fleet
        .herder(&["upgrade", "--tenant", "t002", "--local", "1"])
        .await
        .expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 0));
    tell(&fleet.home, "create type public.kind as enum ('a')").await;
    fleet
        .herder(&["upgrade", "--tenant", "t003", "--local", "1"])
        .await
        .expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (0, 1));
    assert!(own(&fleet, "t002").await.contains(&"kind".into()));
    assert!(!own(&fleet, "t003").await.contains(&"kind".into()));
}

#[tokio::test]
async fn a_plans_error_is_told_where_the_tool_cannot_be_asked() {
    let no_tool = half_with_the_type(Setup::schemas(2)).await;
    no_tool.herder(&["upgrade"]).await.expect(0);
    no_tool.configure(|config| config["runner"]["python"] = "/nowhere/python".into());
    let worker = no_tool.worker(&[]);
    assert_eq!(no_tool.over().await, "failed");
    assert_eq!(worker.drain().await, Some(0));
    let no_room = half_with_the_type(Setup::schemas(2).set("servers.main.budget", 1)).await;
    no_room.herder(&["upgrade", "--local", "1"]).await.expect(4);

    for (fleet, why) in [(no_tool, "/nowhere/python"), (no_room, "has 1 in its budget")] {
        let error = &fleet.job("t002").await["error"];
        assert_eq!(
            (&error["sqlstate"], &error["message"]),
            (&"42710".into(), &"type \"kind\" already exists".into())
        );
        assert_eq!(error["revision"], "20250203");
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(why), "{error:#}");
        assert_eq!(fleet.count("succeeded").await, 1);
    }
}

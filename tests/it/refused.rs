//! What is refused before there is a run: nothing is written, and no tenant fails.

use std::os::unix::fs::PermissionsExt;

use crate::fleet::{Fleet, Setup, Worker, ask, tell};

/// A fleet of three whose tenants' ledger is what `echo` says.
async fn by_command(more: &str) -> Fleet {
    Setup::schemas(3)
        .runner(&format!(
            "kind = 'command'\ncurrent_command = ['echo', '1']\n{more}"
        ))
        .start()
        .await
}

async fn assert_no_run(fleet: &Fleet) {
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 0);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_found_before_a_run() {
    for key in ["command", "downgrade_command", "current_command"] {
        let fleet = by_command("command = ['true']\nrevisions = ['1', '2']").await;
        fleet.configure(|config| {
            config["runner"]
                .as_table_mut()
                .expect("a section")
                .insert(key.into(), toml::Value::from(vec!["./nosuch"]));
        });
        let checked = fleet.herder(&["check"]).await.expect(7);
        assert!(
            checked.stdout.contains("there is no such program"),
            "{key}: {}",
            checked.stdout
        );
        let refused = fleet.herder(&["upgrade", "--local", "2"]).await.expect(3);
        assert!(
            refused.stderr.contains("nosuch`: there is no such program")
                && refused.stderr.contains("hint: install it"),
            "{key}: {}",
            refused.stderr
        );
        assert_no_run(&fleet).await;

        // Once it is there, it must also be a program.
        let file = fleet.dir().join("nosuch");
        std::fs::write(&file, "#!/bin/sh\necho 1\n").expect("a file");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("its mode");
        let refused = fleet.herder(&["upgrade"]).await.expect(3);
        assert!(
            refused.stderr.contains("permission denied"),
            "{key}: {}",
            refused.stderr
        );
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("its mode");
        fleet.herder(&["upgrade"]).await.expect(0);
    }
}

#[tokio::test]
async fn a_program_is_looked_for_where_it_will_be() {
    let fleet =
        by_command("command = ['mine', '{to}']\nrevisions = ['1', '2']\nenv.PATH = 'bin:/usr/bin:/bin'")
            .await;
    fleet.herder(&["check"]).await.expect(7);
    let bin = fleet.dir().join("bin");
    std::fs::create_dir(&bin).expect("a folder");
    std::os::unix::fs::symlink("/bin/true", bin.join("mine")).expect("a program");
    fleet.herder(&["check"]).await.expect(0);
    // It runs, too: it only does nothing.
    let ran = fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    assert!(ran.all().contains("the tool reported success"), "{}", ran.all());
}

#[tokio::test]
async fn tenants_are_listed_where_there_is_no_head_to_compare_them_with() {
    let current = r#"[ "$HERDER_TENANT" = t002 ] || echo 7"#;
    let fleet = Setup::schemas(2)
        .runner(&format!(
            "kind = 'command'\ncommand = ['true']\ncurrent_command = ['sh', '-c', '{current}']"
        ))
        .start()
        .await;
    let args = ["tenants", "--revisions", "--output-format", "json"];
    let listed = fleet.herder(&args).await.expect(0).json();
    let of = |n: usize, field: &str| listed["tenants"][n][field].as_str().map(str::to_owned);
    assert_eq!(of(0, "revision").as_deref(), Some("7"), "{listed:#}");
    assert_eq!(of(0, "status").as_deref(), Some("unknown"), "{listed:#}");
    assert!(
        of(0, "why").is_some_and(|why| why.starts_with("the revisions are not known")),
        "{listed:#}"
    );
    assert_eq!(of(1, "status").as_deref(), Some("never_migrated"), "{listed:#}");
    // With a target, it is known; and one that was asked for must be one.
    let listed = fleet
        .herder(&[&args[..], &["--to", "7"]].concat())
        .await
        .expect(0)
        .json();
    assert_eq!(listed["counts"]["current"], 1, "{listed:#}");
    fleet
        .herder(&[&args[..], &["--to", "head"]].concat())
        .await
        .expect(2);
}

#[tokio::test]
async fn a_step_among_revisions_that_nobody_lists_is_refused() {
    let fleet = by_command("command = ['true']").await;
    for args in [
        &["downgrade", "--to", "-1", "--yes", "--local", "2"][..],
        &["upgrade", "--to", "+1", "--local", "2"],
    ] {
        let refused = fleet.herder(args).await.expect(2);
        assert!(
            refused.stderr.contains("the revisions are not known")
                && refused.stderr.contains("hint: name the revision"),
            "{}",
            refused.stderr
        );
    }
    assert_no_run(&fleet).await;
}

#[tokio::test]
async fn a_schema_of_somebody_else_is_not_set_up() {
    let fleet = Setup::schemas(1).start().await;
    let url = fleet.cluster.url(&fleet.database("home"));
    fleet.configure(|config| config["control"]["url"] = url.into());
    let everything = "select string_agg(relname::text, ' ' order by relname) from pg_class
                      where relnamespace in (select oid from pg_namespace where nspname in ('herder', 'apalis'))";
    for schema in ["herder", "apalis"] {
        tell(
            &fleet.home,
            &format!("create schema {schema}; create table {schema}.run (x int)"),
        )
        .await;
        for args in [&["setup"][..], &["runs"]] {
            let refused = fleet.herder(args).await.expect(3);
            assert!(
                refused.stderr.contains(&format!(
                    "has a schema `{schema}` with tables that Herder did not make"
                )) && refused.stderr.contains("hint: choose another database"),
                "{}",
                refused.stderr
            );
        }
        let left: String = ask(&fleet.home, everything).await;
        assert_eq!(left, "run");
        // An empty schema is nobody's.
        tell(&fleet.home, &format!("drop table {schema}.run")).await;
    }
    fleet.herder(&["setup"]).await.expect(0);
    fleet.herder(&["setup"]).await.expect(0);
}

/// The queue's own migrations have names without a schema in them.
#[tokio::test]
async fn a_role_whose_path_leads_nowhere_sets_up_and_a_broken_off_set_up_is_seen() {
    let fleet = Setup::schemas(1).start().await;
    let database = fleet.database("home");
    let lost = format!("alter database \"{database}\" set search_path = ''");
    tell(&fleet.home, &lost).await;
    let url = fleet.cluster.url(&database);
    fleet.configure(|config| config["control"]["url"] = url.into());
    fleet.herder(&["setup"]).await.expect(0);
    fleet.herder(&["runs"]).await.expect(0);
    let newest = |success: bool| {
        format!(
            "update apalis._sqlx_migrations set success = {success}
             where version = (select max(version) from apalis._sqlx_migrations)"
        )
    };
    tell(&fleet.home, &newest(false)).await;
    let refused = fleet.herder(&["runs"]).await.expect(3);
    assert!(refused.stderr.contains("hint: run `herder setup`"), "{refused:?}");
    tell(&fleet.home, &newest(true)).await;
    fleet.herder(&["setup"]).await.expect(0);
}

#[tokio::test]
async fn a_worker_refuses_an_odd_name_and_takes_no_notice_of_empty_variables() {
    let dir = tempfile::tempdir().expect("a folder");
    let empty = [
        "HERDER_CONFIG",
        "HERDER_CONCURRENCY",
        "HERDER_LISTEN",
        "HERDER_DRAIN_TIMEOUT",
        "HERDER_WORKER_NAME",
        "HERDER_LOG_FORMAT",
    ];
    let empty = empty.map(|name| (name, ""));
    for (args, words) in [
        (&[][..], "cannot read the config herder.toml"),
        (&["--name", "a\nb"], "must be text on one line"),
        (&["--name", ""], "must be text on one line"),
    ] {
        let worker = Worker::start(dir.path(), dir.path().join("log"), args, &empty);
        worker.says(words).await;
    }
}

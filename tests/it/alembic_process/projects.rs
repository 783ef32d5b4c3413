//! Projects, targets and Pythons that make no sense, and how they are told.

use herder::domain::revision::Direction;
use herder::runner::alembic::{Project, ToolErrorKind};

use crate::handmade::{ASYNC_ENV, Database, Handmade, SYNC_ENV, Tenant, tool, warm};

#[tokio::test]
async fn a_project_that_cannot_work_says_so_before_any_tenant_is_touched() {
    use ToolErrorKind::{Config, Env, Script};
    let good = || Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let with = |file: &str, text: &str| {
        let project = good();
        project.write(file, text);
        project
    };
    let header = "revision = 'b'\ndown_revision = 'a'\n";
    let cases = [
        (with("alembic.ini", "[alembic]\n"), Config, "script_location"),
        (
            with("alembic.ini", "[alembic]\nscript_location = nowhere\n"),
            Config,
            "nowhere",
        ),
        (
            with("alembic.ini", "script_location = x\n"),
            Config,
            "no section headers",
        ),
        (
            with("migrations/env.py", "import x\nif True\n"),
            Env,
            "(migrations/env.py, line 2)",
        ),
        (
            with("migrations/versions/b.py", &format!("{header}\ndef upgrade(:\n")),
            Script,
            "(migrations/versions/b.py, line 4)",
        ),
        (
            with(
                "migrations/versions/b.py",
                &format!("{header}import sys\nsys.exit(3)\n"),
            ),
            Script,
            "sys.exit(3) (migrations/versions/b.py, line 4)",
        ),
        (
            with("migrations/versions/b.py", &format!("{header}import no_such\n")),
            Script,
            "ModuleNotFoundError: No module named 'no_such' (migrations/versions/b.py, line 3)",
        ),
        (
            with(
                "migrations/versions/b.py",
                "revision = 'a'\ndown_revision = None\n",
            ),
            Script,
            "revision a is in two files: migrations/versions/a.py and migrations/versions/b.py",
        ),
        (
            with(
                "migrations/versions/b.py",
                "revision = 'b'\ndown_revision = 'zz'\n",
            ),
            Script,
            "revision b (migrations/versions/b.py) follows zz, which no file defines",
        ),
        (
            good()
                .revision("b", Some("c"), "pass")
                .revision("c", Some("b"), "pass"),
            Script,
            "Cycle is detected in revisions (b, c)",
        ),
        (
            with("migrations/versions/other.py", "x = 1\n"),
            Script,
            "Could not determine revision id from filename other.py",
        ),
        (
            with("migrations/versions/b.py", "revision = 'b'\n"),
            Script,
            "AttributeError: module 'b_py' has no attribute 'down_revision' (migrations/versions/b.py)",
        ),
    ];
    let mut process = warm().await;
    for (project, kind, words) in &cases {
        let error = tool(process.describe(&project.project()).await);
        assert_eq!(error.kind, *kind, "{error:?}");
        assert!(error.message.contains(words), "{words} is not in {error:?}");
        assert!(!error.message.contains('\n'), "{error:?}");
    }
    let error = tool(process.describe(&Project::new("/no/such/alembic.ini")).await);
    assert_eq!(
        (error.kind, error.message.as_str()),
        (Config, "there is no /no/such/alembic.ini")
    );
    // Configured by pyproject.toml alone.
    let modern = with(
        "pyproject.toml",
        "[tool.alembic]\nscript_location = \"%(here)s/migrations\"\n",
    );
    let ini = modern.project().ini;
    std::fs::remove_file(&ini).expect("a removal");
    let error = tool(process.describe(&modern.project()).await);
    let hint = error.hint.unwrap_or_default();
    assert!(hint.contains("or a pyproject.toml"), "{hint}");
    let described = process
        .describe(&Project::new(ini.with_file_name("pyproject.toml")))
        .await;
    assert_eq!(described.expect("a description").heads, ["a"]);
    let error = tool(
        process
            .describe(&Project {
                section: "other".into(),
                ..good().project()
            })
            .await,
    );
    assert_eq!(error.kind, Config, "{error:?}");
    assert!(error.hint.is_some(), "{error:?}");

    // The same process goes on with a good one; two heads are no mistake in themselves.
    let forked = good()
        .revision("b", Some("a"), "pass")
        .revision("c", Some("a"), "pass");
    assert_eq!(
        process
            .describe(&forked.project())
            .await
            .expect("a description")
            .heads,
        ["b", "c"]
    );
}

#[tokio::test]
async fn targets_that_make_no_sense_are_told_apart() {
    let database = Database::new().await;
    let mut process = warm().await;
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    let forked = Handmade::new(SYNC_ENV)
        .revision("a", None, "pass")
        .revision("b", Some("a"), "pass")
        .revision("c", Some("a"), "pass");
    let error = tool(process.migrate(&forked.project(), &tenant.up()).await);
    assert_eq!(error.kind, ToolErrorKind::Target, "{error:?}");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("alembic merge heads")),
        "{error:?}"
    );
    let heads = tenant.to(Direction::Upgrade, "heads");
    assert_eq!(
        process
            .migrate(&forked.project(), &heads)
            .await
            .expect("both")
            .steps
            .len(),
        3
    );

    let unknown = tenant.to(Direction::Upgrade, "zzz");
    let error = tool(process.migrate(&forked.project(), &unknown).await);
    assert_eq!(error.message, "Can't locate revision identified by 'zzz'");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("alembic history")),
        "{error:?}"
    );

    let newer = Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let error = tool(process.migrate(&newer.project(), &tenant.up()).await);
    assert_eq!(error.kind, ToolErrorKind::Target, "{error:?}");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("deploy the version")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_env_that_fails_says_where() {
    let database = Database::new().await;
    let cases = [
        (
            "raise ValueError('no\\nway')",
            None,
            "ValueError: no way (migrations/env.py, line 1)",
            None,
        ),
        (
            "import sys\nsys.exit('enough')",
            None,
            "sys.exit(enough) (migrations/env.py, line 2)",
            None,
        ),
        (
            "raise KeyboardInterrupt",
            None,
            "KeyboardInterrupt (migrations/env.py, line 1)",
            None,
        ),
        (
            "x = 1",
            None,
            "env.py ended without running any migration",
            Some("context.run_migrations"),
        ),
        (
            SYNC_ENV,
            Some("postgresql+asyncpg"),
            "MissingGreenlet",
            Some("env.py is synchronous"),
        ),
        (
            ASYNC_ENV,
            Some("postgresql+psycopg2"),
            "async",
            Some("env.py is asynchronous"),
        ),
        (SYNC_ENV, Some("postgresql+nope"), "nope", None),
    ];
    let mut process = warm().await;
    for (env, scheme, words, hint) in cases {
        let project = Handmade::new(env).revision("a", None, "pass");
        let mut tenant = Tenant::new(&database.url);
        tenant.scheme = scheme;
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.kind, ToolErrorKind::Env, "{error:?}");
        assert!(error.message.contains(words), "{words} is not in {error:?}");
        if let Some(hint) = hint {
            assert!(
                error.hint.as_deref().is_some_and(|given| given.contains(hint)),
                "{error:?}"
            );
        }
    }
    for (body, words) in [
        (
            "raise LookupError('gone')",
            "LookupError: gone (migrations/versions/a.py, line 8)",
        ),
        (
            "raise SystemExit(4)",
            "sys.exit(4) (migrations/versions/a.py, line 8)",
        ),
    ] {
        let project = Handmade::new(SYNC_ENV).revision("a", None, body);
        let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ToolErrorKind::Migration, words)
        );
        assert_eq!(error.revision.as_deref(), Some("a"));
    }
    assert_eq!(database.sessions().await, 0);
}

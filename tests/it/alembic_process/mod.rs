//! Warm Alembic processes: what arrives in env.py, what comes back from it, and how they end.

use herder::database_url::DatabaseUrl;
use herder::domain::revision::Direction;
use herder::runner::alembic::ToolErrorKind;

use crate::handmade::{ASYNC_ENV, DRIVERS, Database, Handmade, SYNC_ENV, Tenant, saas, tool, until, warm};

mod ending;
mod failures;
mod projects;

// ---------------------------------------------------------------- the realistic project

#[tokio::test]
async fn the_realistic_project_goes_up_and_down_with_each_env() {
    let mut process = warm().await;
    for ini in [
        "alembic_schema.ini",
        "alembic_sync.ini",
        "alembic_docs_commit.ini",
        "alembic_database.ini",
    ] {
        let database = Database::new().await;
        let odd = "tenant-1 ünï";
        database.run(&format!("create schema \"{odd}\"")).await;
        let by_schema = ini != "alembic_database.ini";
        let schema = if by_schema { odd } else { "public" };
        let mut tenant = Tenant::new(&database.url);
        tenant.schema = by_schema.then_some(odd);

        let up = process.migrate(&saas(ini), &tenant.up()).await.expect(ini);
        assert_eq!(up.steps.len(), 12, "{ini}");
        assert_eq!(up.heads_before, Vec::<String>::new(), "{ini}");
        assert_eq!(up.connections.tenant, 1, "{ini}");
        assert_eq!(up.connections.other, 0, "{ini}");
        assert_eq!(
            up.ledger.as_ref().and_then(|ledger| ledger.schema.as_deref()),
            by_schema.then_some(odd)
        );
        let ledger = format!("select max(version_num) from \"{schema}\".alembic_version");
        assert_eq!(
            database.text(&ledger).await.as_deref(),
            Some("0012_task_priority"),
            "{ini}"
        );
        assert_eq!(
            database.sessions().await,
            0,
            "{ini}: no session outlives its tenant"
        );

        let again = process.migrate(&saas(ini), &tenant.up()).await.expect(ini);
        assert_eq!(again.steps, Vec::<String>::new(), "{ini}");
        assert_eq!(again.heads_before, ["0012_task_priority"], "{ini}");

        let down = tenant.to(Direction::Downgrade, "base");
        let down = process.migrate(&saas(ini), &down).await.expect(ini);
        assert_eq!(down.steps.len(), 12, "{ini}");
        assert_eq!(
            down.steps[0], "0012_task_priority",
            "{ini}: the newest is undone first"
        );
        assert_eq!(database.text(&ledger).await, None, "{ini}");
        let tables = format!("select count(*) from pg_tables where schemaname = '{schema}'");
        assert_eq!(database.count(&tables).await, 1, "{ini}: only the ledger is left");
        if by_schema {
            let strays = "select count(*) from pg_tables where schemaname = 'public'";
            assert_eq!(database.count(strays).await, 0, "{ini}: public is untouched");
        }
    }
}

#[tokio::test]
async fn an_env_that_never_commits_gives_itself_away() {
    let database = Database::new().await;
    database.run("create schema acme").await;
    let mut process = warm().await;
    let migrated = process
        .migrate(
            &saas("alembic_docs.ini"),
            &Tenant::new(&database.url).schema("acme").up(),
        )
        .await
        .expect("Alembic is content");
    assert_eq!(migrated.steps.len(), 12);
    assert!(
        migrated.outer_transaction,
        "Alembic joined the transaction that `SET search_path` began"
    );
    assert_eq!(
        migrated.connections.left_open, 1,
        "its engine was never disposed of"
    );
    assert_eq!(
        database
            .count("select count(*) from pg_tables where schemaname = 'acme'")
            .await,
        0
    );
    until("the connection is closed nevertheless", 0, || database.sessions()).await;
}

#[tokio::test]
async fn a_project_describes_itself() {
    let mut process = warm().await;
    let described = process
        .describe(&saas("alembic_schema.ini"))
        .await
        .expect("a description");
    assert_eq!(described.url_scheme.as_deref(), Some("postgresql+asyncpg"));
    assert_eq!(described.heads, ["0012_task_priority"]);
    assert_eq!(described.revisions.len(), 12);
    let first = &described.revisions[0];
    assert_eq!(
        (first.revision.as_str(), first.label.as_str()),
        ("0001_accounts", "accounts and users")
    );
    assert_eq!(first.file, "versions/0001_accounts.py");
    assert_eq!(first.sha256.len(), 64);
    for pair in described.revisions.windows(2) {
        assert_eq!(pair[1].down, [pair[0].revision.clone()]);
    }
    assert_eq!(&described.versions, process.versions());
}

// ---------------------------------------------------------------- what env.py gets

const TELL: &str = r#"op.execute("create table seen as select current_setting('application_name') as name, current_setting('lock_timeout') as lock, current_setting('statement_timeout') as statement, current_setting('work_mem') as mem")"#;

#[tokio::test]
async fn label_and_limits_arrive_with_every_driver() {
    let mut process = warm().await;
    for (scheme, env) in DRIVERS {
        let database = Database::new().await;
        let project = Handmade::new(env).revision("a", None, TELL);
        // Words of libpq and of sqlx, most of which asyncpg does not take from a URL.
        let url = format!(
            "{}?sslmode=prefer&application_name=theirs&connect_timeout=7&options=-c%20work_mem%3D7MB\
             &keepalives_idle=5&target_session_attrs=any&statement-cache-capacity=1",
            database.url.replace("postgres://", "postgresql://")
        );
        let tenant = Tenant::new(&url).scheme(scheme);
        let migrated = process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect(scheme);
        assert_eq!(migrated.connections.tenant, 1, "{scheme}");
        let seen = database
            .text("select concat_ws('|', name, lock, statement, mem) from seen")
            .await;
        assert_eq!(seen.as_deref(), Some("herder/run/job/1|3s|15min|7MB"), "{scheme}");
    }
}

#[tokio::test]
async fn an_engine_with_its_own_creator_is_limited_too() {
    let database = Database::new().await;
    let env = SYNC_ENV.replace(
        "create_engine(",
        "create_engine(creator=lambda: __import__('psycopg2').connect(context.config.get_main_option('sqlalchemy.url').replace('+psycopg2', '')), url=",
    );
    let project = Handmade::new(&env).revision("a", None, TELL);
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    warm()
        .await
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    let seen = database
        .text("select concat_ws('|', name, lock, statement) from seen")
        .await;
    assert_eq!(seen.as_deref(), Some("herder/run/job/1|3s|15min"));
}

#[tokio::test]
async fn arguments_options_and_environment_are_as_on_the_command_line() {
    let database = Database::new().await;
    database.run("create schema \"s p\"").await;
    let at_home = SYNC_ENV.replace(
        "(connection=connection",
        "(connection=connection, version_table_schema='s p'",
    );
    let env = format!(
        "import os, sys, json\nfrom alembic import context\nimport beside\n\
         c = context.config\nseen = dict(x=context.get_x_argument(), argv=sys.argv, cwd=os.getcwd(), sql=c.cmd_opts.sql,\n\
         schema=c.attributes['x_args'].get('schema'), tail=c.get_main_option('sqlalchemy.url')[-12:],\n\
         cargo=[n for n in os.environ if n in ('CARGO_PKG_NAME', 'CARGO_MANIFEST_DIR')], stdin=sys.stdin.read(), left=os.environ.get('LEFT'))\n\
         os.environ['LEFT'] = 'behind'\nprint('seen', json.dumps(seen))\n{at_home}"
    );
    let project = Handmade::new(&env).revision("a", None, "pass");
    project.write("beside.py", "");
    let mut process = warm().await;
    let url = format!("{}?application_name=a%25b", database.url);
    for _ in 0..2 {
        let tenant = Tenant::new(&url).schema("s p").scheme("postgresql+psycopg2");
        let mut asked = project.project();
        asked.x.insert("tenant".into(), "{schema} of {database}".into());
        process.migrate(&asked, &tenant.up()).await.expect("a migration");
        let tail = process.stderr_tail();
        let seen = tail
            .lines()
            .find_map(|line| line.strip_prefix("seen "))
            .expect(&tail);
        let seen: serde_json::Value = serde_json::from_str(seen).expect("JSON");
        assert_eq!(seen["x"][1], "schema=s p");
        let name = DatabaseUrl::parse(&database.url).expect("a URL").database();
        assert_eq!(seen["x"][2], format!("tenant=s p of {name}"));
        assert!(
            seen["x"][0]
                .as_str()
                .is_some_and(|x| x.starts_with("url=postgresql+psycopg2://")),
            "{seen}"
        );
        assert_eq!(seen["tail"], "n_name=a%25b");
        assert_eq!(seen["schema"], "s p");
        assert_eq!(seen["sql"], false);
        assert_eq!(
            seen["cargo"],
            serde_json::json!(["CARGO_MANIFEST_DIR"]),
            "all but what was removed"
        );
        assert_eq!(seen["stdin"], "");
        assert_eq!(
            seen["left"],
            serde_json::Value::Null,
            "one tenant's environment is not the next one's"
        );
        assert_eq!(seen["argv"][0], "alembic");
        let folder = project.folder.path().canonicalize().expect("a folder");
        assert_eq!(seen["cwd"], folder.display().to_string());
    }
}

#[tokio::test]
async fn an_env_that_uses_one_loop_by_hand_serves_many_tenants() {
    let env = ASYNC_ENV.replace(
        "asyncio.run(main())",
        "loop = asyncio.get_event_loop()\nloop.run_until_complete(main())\nloop.close()",
    );
    let project = Handmade::new(&env).revision("a", None, "pass");
    let mut process = warm().await;
    for _ in 0..3 {
        let database = Database::new().await;
        let tenant = Tenant::new(&database.url).scheme("postgresql+asyncpg");
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect("a migration");
    }
}

#[tokio::test]
async fn printing_and_logging_do_not_disturb() {
    let database = Database::new().await;
    let noise = "print('hello'); __import__('sys').__stdout__.write('raw\\n'); __import__('os').system('echo child'); __import__('os').write(1, b'{\"id\": 1}\\n')";
    let project = Handmade::new(SYNC_ENV).revision("a", None, noise);
    let mut process = warm().await;
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    process
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    let tail = process.stderr_tail();
    for word in ["hello", "raw", "child", "{\"id\": 1}"] {
        assert!(tail.contains(word), "{tail}");
    }
    process.describe(&project.project()).await.expect("a description");
    assert_eq!(process.stderr_tail(), "", "each request has its own");
}

#[tokio::test]
async fn an_edited_revision_is_noticed() {
    let project = Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let mut process = warm().await;
    let before = process.describe(&project.project()).await.expect("a description");
    let project = project
        .revision("a", None, "none")
        .revision("b", Some("a"), "pass");
    let after = process.describe(&project.project()).await.expect("a description");
    assert_eq!(after.heads, ["b"]);
    assert_ne!(before.revisions[0].sha256, after.revisions[0].sha256);
}

// ---------------------------------------------------------------- secrets

#[tokio::test]
async fn no_password_comes_back_in_any_form() {
    let database = Database::new().await;
    let shout = "\nimport sys\nurl = context.config.get_main_option('sqlalchemy.url')\nx = context.get_x_argument(as_dictionary=True)['url']\n\
                 from sqlalchemy.engine import make_url\npw = make_url(url).password\nprint(url, x, pw, repr(pw), ascii(pw))\n\
                 import json\nshell = ''.join(c if c.isalnum() else chr(92) + c for c in pw)\n\
                 odd = [shell, json.dumps(pw).replace('/', chr(92) + '/'), json.dumps(json.dumps(pw)), json.dumps([shell])]\n\
                 print(*odd)\n\
                 raise RuntimeError(f'cannot reach {url} with {pw} {pw!r} {odd} {odd[0]} {odd[1]} {odd[2]} {odd[3]}')\n";
    let env = format!("from alembic import context{shout}");
    let project = Handmade::new(&env).revision("a", None, "pass");
    let mut process = warm().await;
    let secret = "p%25a%40b%3A%2F%C3%BC%20x%27%5C%22tr0ub4dor";
    let url = database.url.replace("postgres@", &format!("postgres:{secret}@"));
    let error = tool(process.migrate(&project.project(), &Tenant::new(&url).up()).await);
    assert_eq!(error.kind, ToolErrorKind::Env);
    let all = format!("{error:?} {error} {}", process.stderr_tail());
    for form in [secret, "p%a@b:/ü x'\\", "a%40b", "a@b", "tr0ub4dor"] {
        assert!(!all.contains(form), "{form} is in {all}");
    }
    assert!(
        error
            .message
            .starts_with("RuntimeError: cannot reach postgresql://postgres:***@"),
        "{error}"
    );
    assert!(process.stderr_tail().contains("***"), "{}", process.stderr_tail());
}

#[tokio::test]
async fn a_percent_sign_that_an_ini_cannot_hold_is_explained() {
    let database = Database::new().await;
    let env = "from alembic import context\n\
               url = context.get_x_argument(as_dictionary=True)['url']\n\
               context.config.set_main_option('sqlalchemy.url', url)\n";
    let project = Handmade::new(env).revision("a", None, "pass");
    let url = database.url.replace("postgres@", "postgres:a%40b@");
    let error = tool(
        warm()
            .await
            .migrate(&project.project(), &Tenant::new(&url).up())
            .await,
    );
    assert_eq!(
        error.hint.as_deref(),
        Some(
            "an ini writes `%` as `%%`: in env.py, config.set_main_option(\"sqlalchemy.url\", url.replace(\"%\", \"%%\"))"
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_password_of_odd_characters_logs_in() {
    let database = Database::new().await;
    // A server that trusts everybody proves nothing here, but does no harm.
    let role = format!("odd_{}", uuid::Uuid::new_v4().simple());
    database
        .run(&format!(
            "create role {role} superuser login password 'p%a@b:/ü x''\\?#[+&='"
        ))
        .await;
    let group = crate::server::WITH_PASSWORD;
    database.run(&format!("grant {group} to {role}")).await;
    let secret = "p%25a%40b%3A%2F%C3%BC%20x%27%5C%3F%23%5B%2B%26%3D";
    let url = database.url.replace("postgres@", &format!("{role}:{secret}@"));
    let mut process = warm().await;
    for (scheme, env) in [
        ("postgresql+psycopg2", SYNC_ENV),
        ("postgresql+psycopg", SYNC_ENV),
        ("postgresql+asyncpg", ASYNC_ENV),
    ] {
        let project = Handmade::new(env).revision("a", None, "pass");
        process
            .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
            .await
            .expect(scheme);
    }
    database.run(&format!("drop owned by {role}")).await;
    database.run(&format!("drop role {role}")).await;
}

//! What the docs of `MigrationRunner` promise, held against every runner. A new one is one more line in [`TOOLS`].

use std::{path::Path, sync::Arc};

use herder::{
    config::{AlembicConfig, CommandConfig, RunnerConfig, SqlConfig},
    domain::{failure::FailureClass, revision::Direction},
    runner::MigrationRunner,
    tenant_error::TenantError,
};

use crate::tenant::{Tenant, build, execute, write};

/// A migration tool with the same three revisions in its own form.
struct Tool {
    name: &'static str,
    /// Writes [`REVISIONS`] into a folder, and says how to run them.
    project: fn(&Path) -> RunnerConfig,
    /// Changes the first revision, where the tool can know of that, and says which file it was.
    edit: Option<fn(&Path) -> &'static str>,
}

/// All tools.
const TOOLS: &[Tool] = &[
    Tool {
        name: "sql",
        project: sql,
        edit: Some(|folder| {
            write(folder, &[("1_notes.up.sql", "create table notes (id int)")]);
            "1_notes.up.sql"
        }),
    },
    Tool {
        name: "alembic",
        project: alembic,
        edit: None,
    },
    Tool {
        name: "command",
        project: command,
        edit: None,
    },
];

/// The second one waits for a test that holds the lock [`GATE`], and can be seen to have run twice.
const REVISIONS: [(&str, &str); 3] = [
    (
        "create table notes (id int primary key, body text)",
        "drop table notes",
    ),
    (
        "select pg_advisory_xact_lock_shared(4242); insert into notes select count(*) from notes",
        "delete from notes",
    ),
    (
        "alter table notes add column at timestamptz",
        "alter table notes drop column at",
    ),
];

const GATE: &str = "select pg_advisory_lock(4242)";

fn sql(folder: &Path) -> RunnerConfig {
    for (i, (up, down)) in REVISIONS.iter().enumerate() {
        let n = i + 1;
        write(
            folder,
            &[
                (&format!("{n}_notes.up.sql"), up),
                (&format!("{n}_notes.down.sql"), down),
            ],
        );
    }
    RunnerConfig::Sql(SqlConfig {
        directory: folder.to_owned(),
        extra_search_path: Vec::new(),
    })
}

const ENV: &str = r##"
from alembic import context
from sqlalchemy import create_engine, pool, text

def quoted(name):
    return '"' + name.replace('"', '""') + '"'


args = context.get_x_argument(as_dictionary=True)
with create_engine(args["url"], poolclass=pool.NullPool).connect() as connection:
    if "schema" in args:
        connection.execute(text("SELECT set_config('search_path', :path, false)"), {"path": quoted(args["schema"])})
        connection.commit()
    context.configure(connection=connection, version_table_schema=args.get("schema"))
    with context.begin_transaction():
        context.run_migrations()
"##;

fn alembic(folder: &Path) -> RunnerConfig {
    let versions = folder.join("versions");
    std::fs::create_dir(&versions).expect("a folder");
    for (i, (up, down)) in REVISIONS.iter().enumerate() {
        let n = i + 1;
        let before = if i == 0 {
            "None".to_owned()
        } else {
            format!("'{i}'")
        };
        let text = format!(
            "from alembic import op\nrevision = '{n}'\ndown_revision = {before}\n\n\
             def upgrade():\n    op.execute('''{up}''')\n\ndef downgrade():\n    op.execute('''{down}''')\n"
        );
        write(&versions, &[(&format!("{n}_notes.py"), &text)]);
    }
    let ini = "[alembic]\nscript_location = %(here)s\nsqlalchemy.url = postgresql+psycopg2://unset\n";
    write(folder, &[("alembic.ini", ini), ("env.py", ENV)]);
    RunnerConfig::Alembic(AlembicConfig {
        config: folder.join("alembic.ini"),
        name: "alembic".into(),
        python: crate::venv::python().to_string_lossy().into_owned(),
        url_scheme: None,
        version_table: "alembic_version".into(),
        plan: herder::config::PlanConfig::default(),
        x: Default::default(),
        private_variables: Vec::new(),
    })
}

const MIGRATE: &str = r#"
run() { psql -Xq -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -1 -f "$1" -c "$2" "$DATABASE_URL"; }
[ "$HERDER_FROM" = base ] && at=0 || at=$HERDER_FROM
[ "$HERDER_TO" = base ] && to=0 || to=$HERDER_TO
psql -Xq -c "create table if not exists version_of_it (version int)" "$DATABASE_URL" || exit 1
while [ "$at" -lt "$to" ]; do
    at=$((at + 1))
    run "$at.up.sql" "insert into version_of_it values ($at)" || exit 1
done
while [ "$at" -gt "$to" ]; do
    run "$at.down.sql" "delete from version_of_it where version = $at" || exit 1
    at=$((at - 1))
done
"#;

const CURRENT: &str = r#"
[ "$(psql -XAtc "select to_regclass('version_of_it') is null")" = t ] && exit
psql -XAtc "select max(version) from version_of_it"
"#;

fn command(folder: &Path) -> RunnerConfig {
    for (i, (up, down)) in REVISIONS.iter().enumerate() {
        let n = i + 1;
        write(
            folder,
            &[(&format!("{n}.up.sql"), up), (&format!("{n}.down.sql"), down)],
        );
    }
    write(folder, &[("migrate.sh", MIGRATE), ("current.sh", CURRENT)]);
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    RunnerConfig::Command(CommandConfig {
        command: words(&["sh", "migrate.sh"]),
        downgrade_command: Vec::new(),
        current_command: words(&["sh", "current.sh"]),
        history_command: Vec::new(),
        revisions: words(&["1", "2", "3"]),
        env: Default::default(),
        stdin: None,
        directory: Some(folder.to_owned()),
        private_variables: Vec::new(),
    })
}

/// A tool with its project, and a tenant for it.
struct Bench {
    name: &'static str,
    folder: tempfile::TempDir,
    runner: Arc<dyn MigrationRunner>,
    tenant: Tenant,
}

impl Bench {
    async fn new(tool: &Tool, schema: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runner = build(&(tool.project)(folder.path()));
        Self {
            name: tool.name,
            folder,
            runner,
            tenant: Tenant::new(schema).await,
        }
    }

    async fn go(&self, direction: Direction, target: &str) -> Result<(), TenantError> {
        self.tenant.attempt(&*self.runner, direction, target).await
    }

    async fn up(&self) {
        let done = self.go(Direction::Upgrade, "head").await;
        assert!(done.is_ok(), "{}: {done:?}", self.name);
    }

    async fn at(&self) -> Option<String> {
        let mut session = self.tenant.session().await;
        let ledger = self.runner.read_ledger(&mut session, self.tenant.subject()).await;
        let ledger = ledger.unwrap_or_else(|e| panic!("{}: {e:?}", self.name));
        self.runner.history().await.expect("a history").describe(&ledger)
    }

    async fn head(&self) -> String {
        let history = self.runner.history().await.expect("a history");
        history.heads().join(",")
    }

    /// All that the three revisions make, once.
    async fn is_at_the_head_once(&self) {
        assert_eq!(self.at().await, Some(self.head().await), "{}", self.name);
        let notes = self
            .tenant
            .value("select count(*) || ' ' || count(at) from notes")
            .await;
        assert_eq!(notes, "1 0", "{}", self.name);
    }
}

#[tokio::test]
async fn looking_changes_nothing() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("acme")).await;
        bench.runner.history().await.expect("a history");
        assert_eq!(bench.at().await, None, "{}", bench.name);
        assert_eq!(bench.tenant.content().await, "", "{}", bench.name);
        bench.up().await;
        let before = bench.tenant.content().await;
        assert_eq!(bench.at().await, Some(bench.head().await), "{}", bench.name);
        assert_eq!(bench.tenant.content().await, before, "{}", bench.name);
    }
}

#[tokio::test]
async fn a_schema_with_an_odd_name_holds_all_and_public_nothing() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("Ac me's \"best\\, \"")).await;
        bench.up().await;
        bench.is_at_the_head_once().await;
        let content = bench.tenant.content().await;
        assert!(!content.contains("public."), "{}: {content}", bench.name);
    }
}

#[tokio::test]
async fn a_whole_database_goes_up_and_down() {
    for tool in TOOLS {
        let bench = Bench::new(tool, None).await;
        bench.up().await;
        bench.is_at_the_head_once().await;
        bench.go(Direction::Downgrade, "-1").await.expect("one step down");
        let tables = "select count(*)::text from notes";
        assert_eq!(bench.tenant.value(tables).await, "1", "{}", bench.name);
        bench
            .go(Direction::Downgrade, "base")
            .await
            .expect("all the way down");
        assert_eq!(bench.at().await, None, "{}", bench.name);
        assert!(!bench.tenant.content().await.contains("notes "), "{}", bench.name);
    }
}

#[tokio::test]
async fn migrating_twice_is_the_same_as_once() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("acme")).await;
        bench.up().await;
        let before = bench.tenant.content().await;
        bench.up().await;
        assert_eq!(bench.tenant.content().await, before, "{}", bench.name);
        bench.is_at_the_head_once().await;
    }
}

#[tokio::test]
async fn killed_midway_and_run_again_ends_at_the_target() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("acme")).await;
        let mut gate = bench.tenant.admin().await;
        execute(&mut gate, GATE).await;
        tokio::select! {
            done = bench.go(Direction::Upgrade, "head") => panic!("{}: it came back: {done:?}", bench.name),
            () = bench.tenant.waits_for_a_lock() => {}
        }
        bench.tenant.is_left_alone().await;
        drop(gate);
        bench.up().await;
        bench.is_at_the_head_once().await;
    }
}

#[tokio::test]
async fn a_cancel_is_noticed_and_leaves_nothing_running() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("acme")).await;
        let mut gate = bench.tenant.admin().await;
        execute(&mut gate, GATE).await;
        let cancel = async {
            bench.tenant.waits_for_a_lock().await;
            bench.tenant.cancel.cancel();
        };
        let (done, ()) = tokio::join!(bench.go(Direction::Upgrade, "head"), cancel);
        assert!(
            matches!(done, Err(TenantError::Cancelled)),
            "{}: {done:?}",
            bench.name
        );
        bench.tenant.is_left_alone().await;
    }
}

#[tokio::test]
async fn a_held_table_is_a_lock_timeout_and_not_a_hang() {
    for tool in TOOLS {
        let mut bench = Bench::new(tool, Some("acme")).await;
        bench.go(Direction::Upgrade, "+2").await.expect("two steps");
        bench.tenant.limits.lock_timeout = std::time::Duration::from_millis(50);
        let mut application = bench.tenant.application().await;
        execute(&mut application, "begin; select * from notes").await;
        let error = bench
            .go(Direction::Upgrade, "head")
            .await
            .expect_err("it is held");
        let (record, class) = (error.to_job_error(), error.class());
        assert_eq!(
            record.sqlstate.as_deref(),
            Some("55P03"),
            "{}: {error:?}",
            bench.name
        );
        assert_eq!(record.reason, "lock_timeout", "{}", bench.name);
        assert_eq!(class, FailureClass::Transient, "{}", bench.name);
        execute(&mut application, "rollback").await;
        bench.up().await;
        bench.is_at_the_head_once().await;
    }
}

#[tokio::test]
async fn an_edited_old_migration_is_refused_by_name() {
    for tool in TOOLS {
        let bench = Bench::new(tool, Some("acme")).await;
        let Some(edit) = tool.edit else { continue };
        bench.go(Direction::Upgrade, "+2").await.expect("two steps");
        let before = bench.tenant.content().await;
        let file = edit(bench.folder.path());
        let error = bench
            .go(Direction::Upgrade, "head")
            .await
            .expect_err("it was edited");
        assert!(
            matches!(error, TenantError::Edited { .. }),
            "{}: {error:?}",
            bench.name
        );
        assert!(error.to_string().contains(file), "{}: {error}", bench.name);
        assert_eq!(bench.tenant.content().await, before, "{}", bench.name);
    }
}

//! The migrations: `examples/alembic-saas`, and the very same SQL as a folder of files.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha384};

use crate::{args::Task, tenants::Tenant, venv};

/// The revisions, oldest first.
const REVISIONS: [&str; 12] = [
    "0001_accounts",
    "0002_projects",
    "0003_tasks_enum",
    "0004_user_prefs",
    "0005_comments",
    "0006_plans",
    "0007_account_plan",
    "0008_billing",
    "0009_touch_trigger",
    "0010_tags_settings",
    "0011_audit",
    "0012_task_priority",
];

/// The schema that stands for a tenant's in what Alembic renders.
const ANY_SCHEMA: &str = "herder_bench_any";

/// What Alembic puts before each revision.
const MARK: &str = "-- Running upgrade ";

/// The ledger of the SQL files, as sqlx makes it.
const SQLX_LEDGER: &str = "create table if not exists _sqlx_migrations (
    version bigint primary key, description text not null, installed_on timestamptz not null default now(),
    success boolean not null, checksum bytea not null, execution_time bigint not null)";

/// Which tool's word a contender is held to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ledger {
    Alembic,
    Sqlx,
}

/// A migration as a file.
struct File {
    version: usize,
    sql: String,
    checksum: String,
}

/// The migrations, rendered.
pub(crate) struct Project {
    /// Python with Alembic.
    pub(crate) python: PathBuf,
    /// The folder with the SQL files.
    pub(crate) directory: PathBuf,
    files: Vec<File>,
    /// What Alembic's offline mode prints, for any schema: base to last but one, that to the last, base to last, back.
    to_before: String,
    to_head: String,
    whole: String,
    back: String,
}

impl Project {
    /// Has Alembic render all that there is, and writes the files below `dir`.
    pub(crate) fn render(dir: PathBuf) -> anyhow::Result<Self> {
        let python = venv::python();
        let render = |way: &str, from: &str, to: &str| -> anyhow::Result<String> {
            let output = Command::new(&python)
                .args(["-m", "alembic", "-c"])
                .arg(ini())
                .args(["-x", &format!("schema={ANY_SCHEMA}")])
                .args(["-x", "url=postgresql+asyncpg://nobody@localhost/nowhere"])
                .args([way, &format!("{from}:{to}"), "--sql"])
                .output()
                .context("cannot run Alembic")?;
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(String::from_utf8(output.stdout)?)
        };
        fs::create_dir_all(&dir)?;
        let [.., before, head] = REVISIONS;
        let whole = render("upgrade", "base", head)?;
        let (to_before, _) = whole
            .rsplit_once(MARK)
            .context("Alembic marks no revision in what it renders")?;
        let pieces: Vec<&str> = whole.split(MARK).skip(1).collect();
        ensure!(
            pieces.len() == REVISIONS.len(),
            "Alembic rendered {} revisions",
            pieces.len()
        );
        let mut files = Vec::with_capacity(pieces.len());
        for (i, (revision, piece)) in REVISIONS.iter().zip(pieces).enumerate() {
            let sql = bare(&format!("{MARK}{piece}"));
            let checksum = Sha384::digest(&sql).iter().map(|b| format!("{b:02x}")).collect();
            fs::write(dir.join(format!("{revision}.sql")), &sql)?;
            files.push(File {
                version: i + 1,
                sql,
                checksum,
            });
        }
        Ok(Self {
            to_before: format!("{to_before}COMMIT;\n"),
            to_head: render("upgrade", before, head)?,
            back: bare(&render("downgrade", head, before)?),
            whole,
            python,
            directory: dir,
            files,
        })
    }

    /// The target, as each tool names it.
    pub(crate) fn head(&self, ledger: Ledger) -> String {
        match ledger {
            Ledger::Alembic => REVISIONS[REVISIONS.len() - 1].to_owned(),
            Ledger::Sqlx => REVISIONS.len().to_string(),
        }
    }

    /// What is fed by hand for a task: one message, with its word in the ledger.
    pub(crate) fn by_hand(&self, ledger: Ledger, task: Task) -> Message {
        match (ledger, task) {
            (Ledger::Alembic, Task::OneStep) => Message::new(&self.to_head),
            (Ledger::Alembic, Task::Twelve) => Message::new(&self.whole),
            (Ledger::Sqlx, Task::OneStep) => self.files(REVISIONS.len() - 1),
            (Ledger::Sqlx, Task::Twelve) => self.files(0),
            // The least that anybody can do: read it.
            (Ledger::Alembic, Task::Nothing) => {
                Message::new(&format!("select version_num from {ANY_SCHEMA}.alembic_version"))
            }
            (Ledger::Sqlx, Task::Nothing) => {
                Message::new(&format!("select version from {ANY_SCHEMA}._sqlx_migrations"))
            }
        }
    }

    /// From nothing to the last revision but one, in both ledgers.
    pub(crate) fn to_before(&self) -> Message {
        let applied = &self.files[..self.files.len() - 1];
        let rows: String = applied.iter().map(|f| format!("{};", f.row())).collect();
        Message::new(&format!(
            "{}; begin; set local search_path = {ANY_SCHEMA}; {SQLX_LEDGER}; {rows} commit",
            self.to_before
        ))
    }

    /// From the last revision but one to the last, in both ledgers.
    pub(crate) fn to_head(&self) -> Message {
        let last = &self.files[self.files.len() - 1];
        Message::new(&format!(
            "{}; begin; set local search_path = {ANY_SCHEMA}; {}; commit",
            self.to_head,
            last.row()
        ))
    }

    /// From the last revision to the last but one, in both ledgers, whichever of them knows of it.
    pub(crate) fn back(&self) -> Message {
        let (back, last) = (&self.back, self.files.len());
        let before = REVISIONS[last - 2];
        Message::new(&format!(
            "begin; set local search_path = {ANY_SCHEMA}; {back}; update alembic_version set version_num = '{before}';
             delete from _sqlx_migrations where version = {last}; commit"
        ))
    }

    /// The files from one on, each in a transaction with its row.
    fn files(&self, from: usize) -> Message {
        let path = format!("set local search_path = {ANY_SCHEMA}");
        let mut text = String::new();
        if from == 0 {
            text += &format!("begin; {path}; {SQLX_LEDGER}; commit;");
        }
        for file in &self.files[from..] {
            text += &format!("begin; {path}; {}; {}; commit;", file.sql, file.row());
        }
        Message::new(&text)
    }
}

impl File {
    fn row(&self) -> String {
        format!(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values ({}, 'by hand', true, decode('{}', 'hex'), 0)",
            self.version, self.checksum
        )
    }
}

/// What goes to a tenant's connection at once.
#[derive(Clone)]
pub(crate) struct Message(String);

impl Message {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn to(&self, tenant: &Tenant) -> String {
        self.0
            .replace(ANY_SCHEMA, tenant.schema.as_deref().unwrap_or("public"))
    }
}

/// The ini whose `env.py` takes both schema and URL from whoever calls.
pub(crate) fn ini() -> PathBuf {
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/alembic-saas/alembic_schema.ini"
    )
    .into()
}

/// A rendered revision without what is not its own: transaction, search path, ledger and the schema's name.
fn bare(rendered: &str) -> String {
    let statements = rendered.split_inclusive(";\n");
    let own = |statement: &&str| {
        let text: Vec<&str> = statement.lines().filter(|l| !l.starts_with("--")).collect();
        let text = text.join(" ");
        let text = text.trim();
        !(["BEGIN;", "COMMIT;"].contains(&text)
            || text.starts_with("SET LOCAL search_path")
            || text.contains("alembic_version"))
    };
    let sql: String = statements.filter(own).collect();
    sql.replace(&format!("{ANY_SCHEMA}."), "").trim().to_owned() + "\n"
}

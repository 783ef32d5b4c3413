//! What Herder and its warm Python process say to each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    process::ExitStatus,
};

use serde::{Deserialize, Serialize};

use super::said::{Beside, Said};
use crate::{domain::revision::Direction, tenant_error::TenantError};

/// An Alembic project: an ini file and the section of it that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// The ini file, as an absolute path. Its folder becomes the current directory, as it is for people who type
    /// `alembic`. A `pyproject.toml` with `[tool.alembic]` will do as well.
    pub ini: PathBuf,
    /// The section, as in `alembic --name`. Nearly always [`Project::DEFAULT_SECTION`].
    pub section: String,
    /// Arguments as in `alembic -x`, besides `url` and `schema`. `{schema}` and `{database}` stand for the tenant's.
    pub x: BTreeMap<String, String>,
}

impl Project {
    /// The section that Alembic reads when nobody names one.
    pub const DEFAULT_SECTION: &str = "alembic";

    /// The project of an ini file, with the usual section.
    pub fn new(ini: impl Into<PathBuf>) -> Self {
        Self {
            ini: ini.into(),
            section: Self::DEFAULT_SECTION.to_owned(),
            x: BTreeMap::new(),
        }
    }
}

/// One tenant's migration. It holds a password, so it has no `Debug`.
#[derive(Clone, Copy, Serialize)]
pub struct Migration<'a> {
    /// Up or down.
    pub direction: Direction,
    /// Any target that Alembic takes: `head`, `heads`, `base`, a revision, a branch.
    pub target: &'a str,
    /// The tenant's database as libpq would take it, `postgres://…` included.
    pub url: &'a str,
    /// SQLAlchemy's dialect and driver, as in `postgresql+asyncpg`. None: that of the ini's own `sqlalchemy.url`, or
    /// else `postgresql`.
    pub scheme: Option<&'a str>,
    /// The tenant's schema. None for a tenant that is a database: `-x schema=…` is then absent.
    pub schema: Option<&'a str>,
    /// What `pg_stat_activity` calls every connection that env.py opens.
    pub application_name: &'a str,
    /// Server settings, `lock_timeout` and the like, that every connection of env.py starts with. They win over what
    /// env.py passes to its engine; a `SET` in a migration wins over them.
    pub settings: &'a BTreeMap<String, String>,
}

/// What keeps a proof within its scratch tenant.
#[derive(Serialize)]
pub(super) struct Within {
    /// Said before the first statement of a transaction.
    pub(super) before: String,
    /// Said before it is committed: what fails then is not.
    pub(super) behind: String,
}

/// A plan to be rendered. Nothing of a tenant is in it: its URL is never connected to.
#[derive(Clone, Copy, Debug)]
pub struct Rendering<'a> {
    /// Up or down.
    pub direction: Direction,
    /// The ledger's rows beforehand.
    pub heads: &'a BTreeSet<String>,
    /// A revision, or `base`.
    pub target: &'a str,
    /// SQLAlchemy's dialect and driver, as in [`Migration`].
    pub scheme: Option<&'a str>,
    /// What stands for the tenant's database.
    pub database: &'a str,
    /// What stands for the tenant's schema.
    pub schema: Option<&'a str>,
    /// Whether it is asked what env.py leads to, as well.
    pub env: bool,
}

/// What became of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Rendered {
    /// Only a live migration can tell what it would do.
    Refused {
        /// Why.
        refused: Refusal,
    },
    /// Alembic's own words.
    Script {
        /// In order.
        events: Vec<Event>,
        /// The ledger that env.py chose.
        ledger: Ledger,
        /// SHA-256 of what no revision's checksum covers: env.py, the code that it leads to, the ini, pyproject.toml. None: it was
        /// not asked for.
        env: Option<String>,
    },
}

/// Where env.py leads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Whereabouts {
    /// The database that it connects to.
    pub database: String,
    /// The schema that unqualified names are made in.
    pub schema: Option<String>,
    /// The schema of its ledger, where it names one or there is one.
    pub ledger: Option<String>,
    /// The schemas in which its connection looks for a name.
    pub path: Vec<String>,
    /// What its connection has set, beside Herder's own settings; and always what decides how it reads and writes times.
    pub session: BTreeMap<String, String>,
    /// An event of its engine that code of the user's listens to.
    pub listens: Option<String>,
    /// The role that it works as, where that is not the one that it connects as.
    pub role: Option<String>,
    /// Who it connects as.
    pub user: String,
    /// What env.py says to it.
    pub besides: Vec<Beside>,
}

/// Why a plan cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// One line, about the revision where there is one: `it reads what a statement found`.
    pub message: String,
    /// The revision that was being rendered. None: env.py itself.
    pub revision: Option<String>,
}

/// A word of Alembic's offline mode.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "is", content = "of", rename_all = "snake_case")]
pub enum Event {
    /// A transaction begins.
    Begin,
    /// A transaction is committed.
    Commit,
    /// A revision begins.
    Step(String),
    /// A comment: `-- Running upgrade a -> b`. What comes between a step and this makes the ledger's table.
    Remark(String),
    /// A statement, or several as somebody wrote them, without the last semicolon.
    Sql(String),
    /// A statement that writes the ledger's rows.
    Ledger(String),
    /// The ledger's rows from here on: the revision is done.
    Heads(BTreeSet<String>),
    /// All revisions are done.
    End,
}

/// The versions of what runs the migrations.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Versions {
    /// Python's, as in `3.11.7`.
    pub python: String,
    /// Alembic's.
    pub alembic: String,
    /// SQLAlchemy's.
    pub sqlalchemy: String,
}

/// What a project says about itself, with no database in sight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Description {
    /// What would run it.
    pub versions: Versions,
    /// The scheme of the ini's own `sqlalchemy.url`, if there is one that can be read without env.py.
    pub url_scheme: Option<String>,
    /// The revisions that nothing follows, sorted. More than one is an error for a target of `head`.
    pub heads: Vec<String>,
    /// All revisions, each one after those that it follows.
    pub revisions: Vec<RevisionFile>,
}

/// One revision and its file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RevisionFile {
    /// Its id, as in the ledger.
    pub revision: String,
    /// The revisions that it follows: none for a base, several for a merge.
    pub down: Vec<String>,
    /// Revisions of other branches that must come first.
    pub depends_on: Vec<String>,
    /// Names by which its branch can be targeted.
    pub branch_labels: Vec<String>,
    /// The first paragraph of its docstring, in one line.
    pub label: String,
    /// Its file, relative to the ini's folder.
    pub file: String,
    /// SHA-256 of the file's bytes, in lower-case hex.
    pub sha256: String,
}

/// What Alembic says it did. Only the tenant's own ledger knows whether it lasted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Migrated {
    /// What env.py said outside all revisions. Only in a proof.
    pub besides: Vec<Beside>,
    /// What was said within revisions. Only in a proof.
    pub said: Vec<Said>,
    /// The revisions applied or undone, in that order. Empty: the tenant was there already.
    pub steps: Vec<String>,
    /// What env.py's connection read from the ledger beforehand.
    pub heads_before: Vec<String>,
    /// The ledger that env.py chose.
    pub ledger: Option<Ledger>,
    /// Alembic found a transaction already open and joined it, so that env.py must commit it. An env.py that does not
    /// has migrated nothing, however many `steps` there are.
    pub outer_transaction: bool,
    /// The connections that env.py opened.
    pub connections: Connections,
}

/// Alembic's version table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ledger {
    /// The table, usually `alembic_version`.
    pub table: String,
    /// Its schema, where env.py names one; otherwise the first of `search_path`.
    pub schema: Option<String>,
}

/// How many connections env.py opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Connections {
    /// To the database that it was told. None: it looked the URL up elsewhere, and ignored Herder's.
    pub tenant: u32,
    /// To any other one.
    pub other: u32,
    /// Left open, and closed by the warm process. A pool that was never disposed of.
    pub left_open: u32,
}

/// Where a failure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolErrorKind {
    /// The ini, or a folder that it names, is missing or wrong. The same for all tenants.
    Config,
    /// The revision files do not load or do not fit together. The same for all tenants.
    Script,
    /// The target does not exist, is ambiguous, or is not reachable from where the tenant stands.
    Target,
    /// env.py failed by itself, before or after the migrations.
    Env,
    /// A revision's own Python failed.
    Migration,
    /// The server was not reached, or the connection broke.
    Connect,
    /// The server answered with an error; see its SQLSTATE.
    Database,
    /// The warm process itself failed.
    Internal,
}

/// A failure that Alembic, env.py, a migration or the server reported. It holds no password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ToolError {
    /// Where it comes from.
    pub kind: ToolErrorKind,
    /// One line. The server's primary message, or `Type: message (file, line N)`.
    pub message: String,
    /// The server's SQLSTATE, if it gave one.
    pub sqlstate: Option<String>,
    /// The statement that failed, with placeholders instead of values, cut at about 2 KB.
    pub statement: Option<String>,
    /// The revision that was being applied or undone.
    pub revision: Option<String>,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(revision) = &self.revision {
            write!(f, "{revision}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.sqlstate {
            Some(sqlstate) => write!(f, " ({sqlstate})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ToolError {}

/// Why a warm process gave no result.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The interpreter cannot be started.
    #[error("cannot start the Python interpreter `{python}`")]
    PythonMissing {
        /// The interpreter, as configured.
        python: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The interpreter has no (whole) Alembic.
    #[error("`{python}` cannot import alembic: {message}")]
    AlembicMissing {
        /// The interpreter, as configured.
        python: String,
        /// Python's own words.
        message: String,
    },
    /// The process ended without an answer: killed, out of memory, or crashed in an extension.
    #[error("the Python process ended without an answer ({status})")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error, without passwords.
        stderr_tail: String,
    },
    /// It said something that is no answer.
    #[error("the Python process is not understood: {message}")]
    Protocol {
        /// What is wrong with it.
        message: String,
        /// The end of its standard error, without passwords.
        stderr_tail: String,
    },
    /// It answered: this failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It was ended before it committed a part of a revision, because that could not be noted.
    #[error(transparent)]
    Unnoted(Box<TenantError>),
}

impl WarmError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::PythonMissing { .. } => Some("set [runner] python to an interpreter that has alembic"),
            Self::AlembicMissing { .. } => {
                Some("pip install alembic there, or set [runner] python to an interpreter that has it")
            }
            Self::Tool(error) => error.hint.as_deref(),
            Self::Died { .. } | Self::Protocol { .. } | Self::Unnoted(_) => None,
        }
    }
}

/// One line from the process.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) id: u64,
    /// No answer yet, but the revisions of which a part is about to be committed, or that there are fewer by now.
    pub(super) halves: Option<Vec<String>>,
    pub(super) result: Option<serde_json::Value>,
    pub(super) error: Option<ToolError>,
}

//! `[runner]`: the migration tool.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// Which tool migrates the tenants.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunnerConfig {
    /// A live Alembic.
    Alembic(AlembicConfig),
    /// A directory of SQL files as sqlx writes it.
    Sql(SqlConfig),
    /// Any program, once per tenant.
    Command(CommandConfig),
}

impl RunnerConfig {
    /// The word for its kind, as in the config and in a run's row.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Alembic(_) => "alembic",
            Self::Sql(_) => "sql",
            Self::Command(_) => "command",
        }
    }

    /// Schemas to search after the tenant's own.
    pub fn extra_search_path(&self) -> &[String] {
        match self {
            Self::Sql(config) => &config.extra_search_path,
            Self::Alembic(_) | Self::Command(_) => &[],
        }
    }
}

/// `kind = "alembic"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlembicConfig {
    /// Alembic's ini.
    #[serde(default = "alembic_ini")]
    pub config: PathBuf,
    /// The section of the ini to read, as `alembic --name`.
    #[serde(default = "alembic_name")]
    pub name: String,
    /// The interpreter that has Alembic: a path, or a name on PATH.
    #[serde(default = "python3")]
    pub python: String,
    /// SQLAlchemy's dialect and driver. Default: that of the ini's own `sqlalchemy.url`, else `postgresql`.
    pub url_scheme: Option<String>,
    /// The ledger's table, where env.py passes another `version_table`. Default: `alembic_version`.
    #[serde(default = "alembic_version")]
    pub version_table: String,
    /// Whether tenants are migrated by SQL that Alembic renders once, or by Alembic itself.
    #[serde(default)]
    pub plan: PlanConfig,
    /// More arguments for env.py, as `alembic -x NAME=VALUE`. `{schema}` and `{database}` stand for the tenant's.
    #[serde(default)]
    pub x: BTreeMap<String, String>,
    /// Variables with URLs of Herder's own, which a migration has no business with. Filled in when the config is read.
    #[serde(skip)]
    pub private_variables: Vec<String>,
}

/// Where a plan takes the place of a live tool. A plan is many times faster, and it is only as good as offline mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanConfig {
    /// Only where the plan is proven: rendered twice alike, and the same as live Alembic in a scratch schema. All
    /// else is migrated live. The default.
    #[default]
    Auto,
    /// Everywhere, without a proof: what cannot be rendered, twice alike, is an error. For who knows that their
    /// offline mode is right, or may not make scratch schemas.
    Always,
    /// Nowhere: live Alembic, in warm processes.
    Never,
}

fn alembic_ini() -> PathBuf {
    "alembic.ini".into()
}

fn alembic_name() -> String {
    "alembic".into()
}

fn alembic_version() -> String {
    "alembic_version".into()
}

fn python3() -> String {
    "python3".into()
}

/// `kind = "sql"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlConfig {
    /// The folder with `<version>_<name>.sql`, or `.up.sql` and `.down.sql`.
    #[serde(default = "migrations")]
    pub directory: PathBuf,
    /// Schemas to search after the tenant's own, e.g. the one that holds extensions. Default: none, so that a
    /// statement can never reach another schema by mistake.
    #[serde(default)]
    pub extra_search_path: Vec<String>,
}

fn migrations() -> PathBuf {
    "migrations".into()
}

/// `kind = "command"`
///
/// `{tenant}`, `{schema}`, `{database}`, `{server}`, `{host}`, `{port}`, `{user}`, `{from}`, `{to}` and `{direction}`
/// are replaced in arguments, environment and standard input; `{url}` and `{password}` only in the last two, since
/// anybody on the machine can read the arguments. `{from}` and `{to}` are `base` before the first revision, never
/// empty. `{{word}}` stands for `{word}`, and all other braces for themselves.
///
/// To Herder, a command is one long statement: `statement_timeout` in `[limits]` bounds all of it, besides each
/// statement of its own session. Commands that only look have a minute.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The program and its arguments for a downgrade. Default: `command`, told apart by `{direction}` or `HERDER_DIRECTION`.
    #[serde(default)]
    pub downgrade_command: Vec<String>,
    /// Prints the tenant's current revision on its last line, `base` or nothing where it was never migrated. It must
    /// change nothing. It knows no `{from}`, `{to}` or `{direction}`.
    #[serde(default)]
    pub current_command: Vec<String>,
    /// Prints all revisions, one a line, oldest first. Run once, without a tenant.
    #[serde(default)]
    pub history_command: Vec<String>,
    /// All revisions, oldest first, where no command can print them. With neither, only a revision in full can be a
    /// target.
    #[serde(default)]
    pub revisions: Vec<String>,
    /// Variables for the program, besides `HERDER_*`, `DATABASE_URL` and libpq's `PG*`. One with a placeholder that
    /// is not known to a command is not set for it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What the program reads on its standard input. Default: nothing. `current_command` reads it, too, where all
    /// its placeholders are known to that.
    pub stdin: Option<String>,
    /// The folder to run it in. Default: that of the config.
    pub directory: Option<PathBuf>,
    /// Variables with URLs of Herder's own, which a migration has no business with. Filled in when the config is read.
    #[serde(skip)]
    pub private_variables: Vec<String>,
}

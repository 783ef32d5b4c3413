//! `[tenants]`: where the tenants are listed.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{domain::tenant::Isolation, secret::Secret};

/// Which list.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum TenantsConfig {
    /// A query on a catalog database.
    Sql(SqlSourceConfig),
    /// A CSV, JSON, YAML or TOML file.
    File(FileConfig),
    /// The schemas of a database that match a pattern.
    Schemas(DiscoverConfig),
    /// The databases of a server that match a pattern.
    Databases(DiscoverConfig),
    /// The `tenants` table of fastapi-tenancy.
    FastapiTenancy(FastapiTenancyConfig),
}

/// `source = "sql"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlSourceConfig {
    /// URL of the catalog database.
    pub url: Secret,
    /// A query that gives `id` and any of `schema`, `database`, `url`, `server`, `isolation` and `labels`.
    pub query: String,
}

/// `source = "file"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The file. Its ending tells its format, unless `format` does.
    pub path: PathBuf,
    /// csv, json, yaml or toml.
    pub format: Option<String>,
}

/// `source = "schemas"` and `source = "databases"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoverConfig {
    /// The server to look on. Default: the only one.
    pub server: Option<String>,
    /// `*` stands for any characters (as does SQL's `%`), `?` for one. Default: all but the system's own.
    #[serde(default = "all")]
    pub pattern: String,
    /// Names or patterns to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
}

fn all() -> String {
    "*".into()
}

/// `source = "fastapi-tenancy"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastapiTenancyConfig {
    /// URL of the database that holds the table. SQLAlchemy's `postgresql+asyncpg://` is understood.
    pub url: Secret,
    /// The table. Default: `tenants`.
    #[serde(default = "tenants")]
    pub table: String,
    /// Which statuses are migrated. Default: active ones.
    #[serde(default = "active")]
    pub statuses: Vec<String>,
    /// The application's own strategy, which holds for every tenant without an override. Default: schema.
    #[serde(default = "schema")]
    pub isolation: Isolation,
}

fn tenants() -> String {
    "tenants".into()
}

fn active() -> Vec<String> {
    vec!["active".into()]
}

fn schema() -> Isolation {
    Isolation::Schema
}

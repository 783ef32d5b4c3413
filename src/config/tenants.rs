//! `[tenants]`: where the tenants are listed.

use std::path::PathBuf;

use serde::Deserialize;

use crate::secret::Secret;

/// Which list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// A query that gives `id` and any of `schema`, `database`, `url`, `server`, `isolation` and `labels`. Other
    /// columns are ignored.
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
    /// `*` stands for any characters (as does SQL's `%`), `?` for one. Default: all but the system's own. `public`,
    /// `postgres` and the database with Herder's own tables are tenants only where the pattern is that very name.
    #[serde(default = "all")]
    pub pattern: String,
    /// Names or patterns to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
}

fn all() -> String {
    "*".into()
}

/// `source = "fastapi-tenancy"`. What that project's own `TenancyConfig` knows and its table does not: write here what
/// stands there. Its longer names for the strategies are understood, too.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastapiTenancyConfig {
    /// URL of the database that holds the table. SQLAlchemy's `postgresql+asyncpg://` is understood.
    pub url: Secret,
    /// The table, with its schema if need be. Default: `tenants`.
    #[serde(default = "tenants")]
    pub table: String,
    /// Which statuses are migrated: active, suspended, provisioning, deleted. Default: active ones. Leave one out,
    /// and its tenants are behind when they come back.
    #[serde(default = "active")]
    pub statuses: Vec<String>,
    /// Which column is the tenant's id in Herder: `id`, or `identifier`, the slug. Default: id.
    #[serde(default)]
    pub id: FastapiId,
    /// The application's own strategy, which holds for every tenant without an override. Default: schema.
    #[serde(default, alias = "isolation_strategy")]
    pub isolation: FastapiStrategy,
    /// hybrid: the ids of the premium tenants.
    #[serde(default)]
    pub premium_tenants: Vec<String>,
    /// hybrid: the strategy of premium tenants. Default: schema.
    #[serde(default, alias = "premium_isolation_strategy")]
    pub premium_isolation: FastapiStrategy,
    /// hybrid: the strategy of all others. Default: rls.
    #[serde(default = "rls", alias = "standard_isolation_strategy")]
    pub standard_isolation: FastapiStrategy,
    /// What stands before a tenant's identifier in the name of its schema. Default: `tenant_`.
    #[serde(default = "schema_prefix")]
    pub schema_prefix: String,
    /// The schema of the rows that tenants share under `rls`. Default: public.
    #[serde(default = "public")]
    pub public_schema: String,
    /// The URL of a tenant's database, with `{tenant_id}` or `{database_name}` in it. Default: the database
    /// `tenant_<identifier>_db` on the server.
    pub database_url_template: Option<Secret>,
    /// Whether a row's own `isolation_strategy` and `database_url` win over the settings above, as the documentation
    /// of the table says. Default: true. The application itself (0.5) heeds a row's strategy only under `hybrid`, and
    /// its URL only when it migrates: false does as it does when it runs.
    #[serde(default = "yes")]
    pub overrides: bool,
    /// The server where the tenants live, by its name under `[servers]`. Default: the only one.
    pub server: Option<String>,
}

/// A strategy of fastapi-tenancy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastapiStrategy {
    /// A schema per tenant.
    #[default]
    Schema,
    /// A database per tenant.
    Database,
    /// Rows in shared tables.
    #[serde(alias = "shared")]
    Rls,
    /// One strategy for premium tenants, another for the rest.
    Hybrid,
}

/// A column of fastapi-tenancy's table that tells tenants apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastapiId {
    /// The opaque key.
    #[default]
    Id,
    /// The slug.
    Identifier,
}

fn tenants() -> String {
    "tenants".into()
}

fn active() -> Vec<String> {
    vec!["active".into()]
}

fn rls() -> FastapiStrategy {
    FastapiStrategy::Rls
}

fn schema_prefix() -> String {
    "tenant_".into()
}

fn public() -> String {
    "public".into()
}

fn yes() -> bool {
    true
}

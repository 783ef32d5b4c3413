//! `source = "fastapi-tenancy"`: the `tenants` table of the Python package fastapi-tenancy (0.3 to 0.5), as its
//! `SQLAlchemyTenantStore` creates it.
//!
//! The table holds names and overrides only; where a tenant lives follows from its `identifier` by rules in that
//! project's code, which stand here again:
//!
//! | strategy | place |
//! |---|---|
//! | `schema` | the row's `schema_name`, else prefix and identifier with `_` for `-`, in the server's own database |
//! | `database` | the row's `database_url`, else the template, else the database `tenant_<identifier>_db` |
//! | `rls` | the public schema of the server's own database: all such tenants are one job |
//! | `hybrid` | one of the above: the row's strategy, else by the list of premium tenants |

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, FromRow};
use tracing::warn;

use super::{Listed, TenantSource, TenantSourceError, catalog};
use crate::{
    config::{FastapiId, FastapiStrategy, FastapiTenancyConfig},
    database_url::DatabaseUrl,
    domain::{failure::cut, tenant::Isolation},
    nearest::did_you_mean,
    secret::{Secret, shown},
    servers::Servers,
    session::quote,
};

/// All the statuses there are. A misspelt one would leave its tenants out without a word.
const STATUSES: [&str; 4] = ["active", "suspended", "provisioning", "deleted"];

/// What an encrypted value begins with. Only the application has the key.
const ENCRYPTED: &str = "enc::";

/// Reads the table.
pub struct FastapiTenancySource {
    config: FastapiTenancyConfig,
    url: DatabaseUrl,
    server: String,
    premium: HashSet<String>,
    name: String,
}

/// A row of the table.
#[derive(FromRow)]
struct TenantRow {
    id: String,
    identifier: String,
    name: String,
    status: String,
    isolation_strategy: Option<String>,
    database_url: Option<String>,
    schema_name: Option<String>,
}

impl FastapiTenancySource {
    /// Checks the config as that project checks its own. Connects to nothing.
    ///
    /// # Errors
    /// A URL is none, a status is unknown, the strategies do not go together.
    pub fn new(config: &FastapiTenancyConfig, servers: &Servers) -> Result<Self, TenantSourceError> {
        let url = super::url_in_config(&config.url)?;
        check(config).map_err(TenantSourceError::Config)?;
        Ok(Self {
            server: super::server_in_config(config.server.as_deref(), servers)?,
            premium: config.premium_tenants.iter().cloned().collect(),
            name: format!("fastapi-tenancy's table `{}` on {url}", config.table),
            config: config.clone(),
            url,
        })
    }

    async fn read(&self, id: Option<&str>) -> Result<Vec<Listed>, TenantSourceError> {
        let table: Vec<String> = self.config.table.split('.').map(quote).collect();
        let key = match self.config.id {
            FastapiId::Id => "id",
            FastapiId::Identifier => "identifier",
        };
        let statement = format!(
            "select id, identifier, name, status, isolation_strategy, database_url, schema_name from {} \
             where (status = any($1) and ($2 is null or {key} = $2)) or ($2 is null and status <> all($3)) \
             order by identifier",
            table.join(".")
        );
        let statement = sqlx::query(AssertSqlSafe(statement))
            .bind(&self.config.statuses)
            .bind(id)
            .bind(STATUSES.as_slice());
        let rows = catalog::fetch(&self.url, statement).await;
        let rows = rows.map_err(|e| e.into_source_error(&self.name))?;
        let rows: Result<Vec<TenantRow>, sqlx::Error> = rows.iter().map(TenantRow::from_row).collect();
        let invalid = |message: String| TenantSourceError::Invalid {
            source_name: self.name.clone(),
            message,
        };
        let rows = rows.map_err(|e| invalid(e.to_string()))?;
        let is_known = |row: &TenantRow| STATUSES.contains(&row.status.as_str());
        let (rows, strange): (Vec<TenantRow>, Vec<TenantRow>) = rows.into_iter().partition(is_known);
        warn_of_strange(&strange);
        if id.is_none() {
            self.warn_of_unheeded(&rows);
        }
        Ok(rows.into_iter().map(|row| self.listed(row)).collect())
    }

    /// A row as an entry of the list. One that makes no sense is one still: whoever leaves it out has the others.
    fn listed(&self, row: TenantRow) -> Listed {
        let id = match self.config.id {
            FastapiId::Id => row.id.clone(),
            FastapiId::Identifier => row.identifier.clone(),
        };
        let identifier = row.identifier.clone();
        let placed = self.placed(row).unwrap_or_else(|fault| Listed {
            fault: Some(format!("identifier `{}`: {fault}", shown(&identifier))),
            ..Listed::default()
        });
        Listed { id, ..placed }
    }

    /// Says where Herder takes a row at its word and the application does not.
    fn warn_of_unheeded(&self, rows: &[TenantRow]) {
        if !self.config.overrides || self.config.isolation == FastapiStrategy::Hybrid {
            return;
        }
        let differs = |row: &&TenantRow| {
            let own = row.isolation_strategy.as_deref().map(strategy_of);
            own.is_some_and(|own| own != Ok(self.config.isolation))
        };
        let (count, first) = (rows.iter().filter(differs).count(), rows.iter().find(differs));
        if let Some(first) = first {
            warn!(
                tenant.id = %first.id, count,
                "{}, `{}` among them: another isolation_strategy than the application has; it heeds that only under \
                 `hybrid`, Herder always does unless `overrides = false`",
                tenants(count), first.id.escape_debug()
            );
        }
    }

    fn placed(&self, row: TenantRow) -> Result<Listed, String> {
        let strategy = self.strategy(&row)?;
        let mut listed = Listed {
            server: Some(self.server.clone()),
            ..Listed::default()
        };
        match strategy {
            FastapiStrategy::Schema => {
                listed.isolation = Some(Isolation::Schema);
                listed.schema = Some(match filled(row.schema_name) {
                    Some(schema) => schema,
                    None => schema_name(&self.config.schema_prefix, &row.identifier)?,
                });
            }
            FastapiStrategy::Database => {
                listed.isolation = Some(Isolation::Database);
                let own = filled(row.database_url).filter(|_| self.config.overrides);
                match (own, &self.config.database_url_template) {
                    (Some(own), _) if own.starts_with(ENCRYPTED) => {
                        return Err(
                            "its `database_url` is encrypted, and only the application has the key; \
                             list such tenants with the sql or file source"
                                .into(),
                        );
                    }
                    (Some(own), _) => listed.url = Some(Secret::new(own)),
                    (None, Some(template)) => {
                        let database = database_name(&row.identifier)?;
                        let url = render(template.expose(), &row.id, &database)?;
                        listed.url = Some(Secret::new(url));
                    }
                    (None, None) => listed.database = Some(database_name(&row.identifier)?),
                }
                if listed.url.is_some() {
                    // The URL tells the server, which need not be that of the schemas.
                    listed.server = None;
                }
            }
            FastapiStrategy::Rls => {
                listed.isolation = Some(Isolation::Shared);
                listed.schema = Some(self.config.public_schema.clone());
            }
            FastapiStrategy::Hybrid => return Err("`hybrid` is not a strategy for a single tenant".into()),
        }
        listed.labels = BTreeMap::from([
            ("name".into(), row.name),
            ("status".into(), row.status),
            ("identifier".into(), row.identifier),
        ]);
        Ok(listed)
    }

    /// Which strategy holds for a tenant.
    fn strategy(&self, row: &TenantRow) -> Result<FastapiStrategy, String> {
        let c = &self.config;
        let own = row.isolation_strategy.as_deref().filter(|own| !own.is_empty());
        let own = own.map(strategy_of).transpose()?;
        match (c.isolation, own) {
            (FastapiStrategy::Hybrid, Some(own)) => {
                if [c.premium_isolation, c.standard_isolation].contains(&own) {
                    return Ok(own);
                }
                Err(format!(
                    "its isolation_strategy `{}` is neither the premium nor the standard one of `hybrid`",
                    row.isolation_strategy.as_deref().unwrap_or_default()
                ))
            }
            (FastapiStrategy::Hybrid, None) if self.premium.contains(&row.id) => Ok(c.premium_isolation),
            (FastapiStrategy::Hybrid, None) => Ok(c.standard_isolation),
            (_, Some(own)) if c.overrides => Ok(own),
            (strategy, _) => Ok(strategy),
        }
    }
}

#[async_trait]
impl TenantSource for FastapiTenancySource {
    async fn list(&self) -> Result<Vec<Listed>, TenantSourceError> {
        self.read(None).await
    }

    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        Ok(self.read(Some(id)).await?.pop())
    }
}

/// Says which rows are left out because nobody knows what their status means: fastapi-tenancy itself writes no such.
fn warn_of_strange(rows: &[TenantRow]) {
    let Some(first) = rows.first() else {
        return;
    };
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *statuses.entry(&row.status).or_default() += 1;
    }
    let counts: Vec<String> = statuses
        .iter()
        .map(|(status, count)| format!("`{}` ({count})", cut(status, 50).escape_debug()))
        .collect();
    warn!(
        tenant.id = %first.id, count = rows.len(),
        "Left out {}, `{}` among them: fastapi-tenancy has no such status as {}; it knows {}",
        tenants(rows.len()), first.id.escape_debug(), counts.join(", "), STATUSES.join(", ")
    );
}

fn tenants(count: usize) -> String {
    format!("{count} {}", if count == 1 { "tenant" } else { "tenants" })
}

fn check(config: &FastapiTenancyConfig) -> Result<(), String> {
    for status in &config.statuses {
        if !STATUSES.contains(&status.as_str()) {
            let nearest = did_you_mean(status, STATUSES.into_iter());
            return Err(format!(
                "`{status}` in `statuses` is not a status of fastapi-tenancy{nearest}"
            ));
        }
    }
    if config.isolation == FastapiStrategy::Hybrid {
        let (premium, standard) = (config.premium_isolation, config.standard_isolation);
        if premium == standard || [premium, standard].contains(&FastapiStrategy::Hybrid) {
            return Err(
                "`premium_isolation` and `standard_isolation` must be two of schema, database and rls".into(),
            );
        }
    }
    if let Some(template) = &config.database_url_template {
        let (a, b) = (
            render(template.expose(), "a", "a")?,
            render(template.expose(), "b", "b")?,
        );
        if a == b {
            return Err("`database_url_template` needs {database_name} or {tenant_id} in it".into());
        }
        DatabaseUrl::parse(&a).map_err(|e| format!("`database_url_template` cannot be used: {e}"))?;
    }
    Ok(())
}

fn filled(value: Option<String>) -> Option<String> {
    value.filter(|v| !v.is_empty())
}

fn strategy_of(word: &str) -> Result<FastapiStrategy, String> {
    match word {
        "schema" => Ok(FastapiStrategy::Schema),
        "database" => Ok(FastapiStrategy::Database),
        "rls" => Ok(FastapiStrategy::Rls),
        "hybrid" => Ok(FastapiStrategy::Hybrid),
        other => Err(format!(
            "unknown isolation_strategy `{}`: it is schema, database or rls",
            other.escape_debug()
        )),
    }
}

/// Fills in a template as Python's `str.format` does, braces doubled for plain ones.
fn render(template: &str, tenant_id: &str, database_name: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let replaced = [
            ("{{", "{"),
            ("}}", "}"),
            ("{tenant_id}", tenant_id),
            ("{database_name}", database_name),
        ];
        let found = replaced.into_iter().find(|(word, _)| rest.starts_with(word));
        let (word, value) = found.ok_or(
            "`database_url_template` holds a brace that is part of neither {database_name} nor {tenant_id}",
        )?;
        out.push_str(value);
        rest = &rest[word.len()..];
    }
    Ok(out + rest)
}

/// `TenancyConfig.get_schema_name`. Not `sanitize_identifier`: `a--b` stays apart from `a-b`.
fn schema_name(prefix: &str, identifier: &str) -> Result<String, String> {
    check_identifier(identifier)?;
    Ok(format!("{prefix}{}", identifier.replace(['-', '.'], "_")))
}

/// `TenancyConfig.get_database_name`. Its `tenant_` is a literal, and not the prefix of schemas.
fn database_name(identifier: &str) -> Result<String, String> {
    check_identifier(identifier)?;
    Ok(format!("tenant_{}_db", sanitize_identifier(identifier)))
}

/// `validate_tenant_identifier`: `^[a-z][a-z0-9\-]{1,61}[a-z0-9]$`.
fn check_identifier(identifier: &str) -> Result<(), String> {
    let bytes = identifier.as_bytes();
    let ok = (3..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| *b != b'-');
    match ok {
        true => Ok(()),
        false => Err("fastapi-tenancy derives no name from such an identifier".into()),
    }
}

/// `core_sanitize_identifier`.
fn sanitize_identifier(identifier: &str) -> String {
    let mut out = String::new();
    for c in identifier.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            _ if out.ends_with('_') => {}
            _ => out.push('_'),
        }
    }
    let out = out.trim_matches('_');
    let prefix = if out.starts_with(|c: char| c.is_ascii_digit()) {
        "t_"
    } else {
        ""
    };
    let mut out = match out {
        "" => "tenant".to_owned(),
        _ => format!("{prefix}{out}"),
    };
    out.truncate(63);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerConfig;

    fn config(text: &str) -> FastapiTenancyConfig {
        toml::from_str(&format!("url = 'postgresql+asyncpg://u:hunter2@h/app'\n{text}")).expect("a config")
    }

    fn source(text: &str) -> Result<FastapiTenancySource, TenantSourceError> {
        let server = ServerConfig {
            url: Secret::new("postgresql://u@h/app"),
            budget: None,
        };
        let servers = Servers::new(&BTreeMap::from([("main".into(), server)])).expect("a server");
        FastapiTenancySource::new(&config(text), &servers)
    }

    /// The place of a row with this strategy, URL and schema, under a config.
    fn place(text: &str, id: &str, strategy: &str, url: &str, schema: &str) -> String {
        let some = |value: &str| Some(value.to_owned());
        let row = TenantRow {
            id: id.into(),
            identifier: "acme--corp".into(),
            name: "Acme".into(),
            status: "active".into(),
            isolation_strategy: some(strategy).filter(|s| !s.is_empty()),
            database_url: some(url),
            schema_name: some(schema),
        };
        match source(text).expect("a source").placed(row) {
            Ok(t) => {
                let url = t.url.as_ref().map(Secret::expose);
                let fields = [t.schema.as_deref(), t.database.as_deref(), url];
                let fields: Vec<&str> = fields.into_iter().flatten().collect();
                format!(
                    "{} {}",
                    t.isolation.map(Isolation::as_str).unwrap_or_default(),
                    fields.join(" ")
                )
            }
            Err(error) => error,
        }
    }

    // The expected names were printed by fastapi-tenancy 0.5.0 itself.
    #[test]
    fn names_are_those_that_the_project_derives() {
        for (identifier, schema, database) in [
            ("acme-corp", "t_acme_corp", "tenant_acme_corp_db"),
            ("a--b", "t_a__b", "tenant_a_b_db"),
            ("a1-2-3", "t_a1_2_3", "tenant_a1_2_3_db"),
            (
                "t------------------------------z",
                "t_t______________________________z",
                "tenant_t_z_db",
            ),
        ] {
            assert_eq!(schema_name("t_", identifier).as_deref(), Ok(schema));
            assert_eq!(database_name(identifier).as_deref(), Ok(database));
        }
        for identifier in ["Acme", "ab", "a-", "-ab", "a.b", "1ab", "a_b", ""] {
            assert!(schema_name("t_", identifier).is_err(), "{identifier}");
        }
        for (text, expected) in [
            ("A B C", "a_b_c"),
            ("2fast", "t_2fast"),
            ("--", "tenant"),
            ("_x_", "x"),
        ] {
            assert_eq!(sanitize_identifier(text), expected);
        }
        assert_eq!(
            sanitize_identifier(&"9".repeat(70)),
            format!("t_{}", "9".repeat(61))
        );
        assert_eq!(
            render("p://h/{database_name}?n={tenant_id}{{x}}", "Id-_1", "db").as_deref(),
            Ok("p://h/db?n=Id-_1{x}")
        );
    }

    #[test]
    fn the_strategy_and_the_overrides_tell_the_place() {
        let own = "postgresql+asyncpg://x@g/own";
        let database = "isolation_strategy = 'database'";
        let template = "isolation = 'database'\ndatabase_url_template = 'postgresql://x@g/{database_name}'";
        let hybrid = "isolation = 'hybrid'\npremium_tenants = ['p']\npremium_isolation = 'database'";
        for (text, id, strategy, url, schema, expected) in [
            ("", "t", "", own, "", "schema tenant_acme__corp"),
            ("schema_prefix = 'x_'", "t", "", "", "", "schema x_acme__corp"),
            ("", "t", "", "", "Own", "schema Own"),
            (
                "",
                "t",
                "database",
                own,
                "",
                "database postgresql+asyncpg://x@g/own",
            ),
            ("", "t", "rls", "", "s", "shared public"),
            ("overrides = false", "t", "rls", "", "s", "schema s"),
            (database, "t", "", "", "s", "database tenant_acme_corp_db"),
            (
                database,
                "t",
                "",
                own,
                "",
                "database postgresql+asyncpg://x@g/own",
            ),
            (
                template,
                "t",
                "",
                "",
                "",
                "database postgresql://x@g/tenant_acme_corp_db",
            ),
            (
                template,
                "t",
                "",
                own,
                "",
                "database postgresql+asyncpg://x@g/own",
            ),
            (
                "isolation = 'rls'\npublic_schema = 'app'",
                "t",
                "",
                "",
                "",
                "shared app",
            ),
            (hybrid, "p", "", "", "", "database tenant_acme_corp_db"),
            (hybrid, "t", "", "", "", "shared public"),
            (hybrid, "t", "database", "", "", "database tenant_acme_corp_db"),
            (hybrid, "p", "rls", "", "", "shared public"),
            (
                hybrid,
                "p",
                "schema",
                "",
                "",
                "its isolation_strategy `schema` is neither the premium nor the standard one of `hybrid`",
            ),
            (
                "",
                "t",
                "hybrid",
                "",
                "",
                "`hybrid` is not a strategy for a single tenant",
            ),
            (
                "",
                "t",
                "tables",
                "",
                "",
                "unknown isolation_strategy `tables`: it is schema, database or rls",
            ),
        ] {
            assert_eq!(
                place(text, id, strategy, url, schema),
                expected,
                "{text} {strategy}"
            );
        }
        let encrypted = place(database, "t", "", "enc::gAAAAsecret", "");
        assert!(
            encrypted.contains("is encrypted") && !encrypted.contains("secret"),
            "{encrypted}"
        );
    }

    #[test]
    fn a_config_that_the_project_would_refuse_is_refused() {
        for (text, expected) in [
            (
                "statuses = ['activ']",
                "`activ` in `statuses` is not a status of fastapi-tenancy; did you mean `active`?",
            ),
            (
                "isolation = 'hybrid'\nstandard_isolation = 'schema'",
                "`premium_isolation` and `standard_isolation` must be two of schema, database and rls",
            ),
            (
                "database_url_template = 'postgresql://u:hunter2@h/app'",
                "`database_url_template` needs {database_name} or {tenant_id} in it",
            ),
            (
                "database_url_template = 'postgresql://u:hunter2@h/{tenant}'",
                "`database_url_template` holds a brace that is part of neither {database_name} nor {tenant_id}",
            ),
            (
                "server = 'mian'",
                "`server` is `mian`, which is not in the config; did you mean `main`?",
            ),
        ] {
            let error = source(text).err().expect("it is wrong");
            assert_eq!(error.to_string(), format!("[tenants] {expected}"));
        }
    }
}

//! `source = "schemas"` and `source = "databases"`: whatever matches a pattern on a server is a tenant, under its own
//! name.

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};
use tracing::warn;

use super::{Listed, TenantSource, TenantSourceError, catalog};
use crate::{config::DiscoverConfig, database_url::DatabaseUrl, domain::tenant::Isolation, servers::Servers};

/// Schemas that are no tenant unless the pattern is that very name.
const UNLIKELY_SCHEMAS: [&str; 1] = ["public"];

/// Herder's own schemas. They are no tenants, whatever the pattern says.
const OWN_SCHEMAS: [&str; 2] = ["herder", "apalis"];

/// Databases that are no tenant unless the pattern is that very name: PostgreSQL's, and those of Amazon, Microsoft
/// and Google.
const UNLIKELY_DATABASES: [&str; 4] = ["postgres", "rdsadmin", "azure_maintenance", "cloudsqladmin"];

// Those that an extension brought (postgis, pg_cron, timescaledb) belong to it.
const SCHEMAS: &str = "\
    select n.nspname::text from pg_namespace n \
    where n.nspname not like 'pg\\_%' and n.nspname not like 'herder\\_shadow\\_%' and n.nspname <> 'information_schema' and ($1 is null or n.nspname = $1) \
      and not exists (select from pg_depend d where d.classid = 'pg_namespace'::regclass and d.objid = n.oid \
                        and d.deptype = 'e') \
    order by n.nspname";

// A limit of -2 marks what a broken-off DROP DATABASE left behind. Databases that this role may not connect to, or that are
// closed, are listed: a tenant with a missing grant, or one in maintenance, should fail, not be forgotten.
const DATABASES: &str = "\
    select datname::text from pg_database \
    where not datistemplate and datname not like 'herder\\_shadow\\_%' and datconnlimit <> -2 and ($1 is null or datname = $1) \
    order by datname";

/// Looks what is there.
pub struct DiscoverSource {
    kind: Isolation,
    server: String,
    url: DatabaseUrl,
    pattern: String,
    exclude: Vec<String>,
    control_database: Option<String>,
}

impl DiscoverSource {
    /// Schemas of the server's own database.
    ///
    /// # Errors
    /// The server is unknown, or its URL names no database.
    pub fn schemas(config: &DiscoverConfig, servers: &Servers) -> Result<Self, TenantSourceError> {
        let source = Self::new(Isolation::Schema, config, servers)?;
        match servers.own_database(&source.server) {
            Ok(Some(_)) => Ok(source),
            _ => Err(TenantSourceError::Config(format!(
                "the url of server `{}` says {{database}}: give it the database whose schemas are the tenants",
                source.server
            ))),
        }
    }

    /// Databases of the server.
    ///
    /// # Errors
    /// The server is unknown.
    pub fn databases(config: &DiscoverConfig, servers: &Servers) -> Result<Self, TenantSourceError> {
        Self::new(Isolation::Database, config, servers)
    }

    fn new(kind: Isolation, config: &DiscoverConfig, servers: &Servers) -> Result<Self, TenantSourceError> {
        let server = super::server_in_config(config.server.as_deref(), servers)?;
        let url = servers.url(&server, None);
        Ok(Self {
            kind,
            url: url.map_err(|e| TenantSourceError::Config(e.to_string()))?,
            control_database: servers.control_database(&server).map(str::to_owned),
            server,
            pattern: config.pattern.clone(),
            exclude: config.exclude.clone(),
        })
    }

    async fn look(&self, name: Option<&str>) -> Result<Vec<Listed>, TenantSourceError> {
        let statement = match self.kind {
            Isolation::Database => DATABASES,
            Isolation::Schema | Isolation::Shared => SCHEMAS,
        };
        let rows = catalog::fetch(&self.url, sqlx::query(statement).bind(name)).await;
        let rows = rows.map_err(|e| e.into_source_error(&self.name()))?;
        let names = rows.iter().filter_map(|row| self.readable(row));
        Ok(names
            .filter(|name| self.wants(name))
            .map(|name| self.listed(name))
            .collect())
    }

    /// A name that is text. That of a database is whatever bytes its creator's own database took for a name; no client that
    /// speaks UTF-8 can connect to it by that, and it must not hide the others.
    fn readable(&self, row: &PgRow) -> Option<String> {
        let raw = row.try_get_raw(0).and_then(|value| {
            let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
            Ok(bytes.to_vec())
        });
        match String::from_utf8(raw.ok()?) {
            Ok(name) => Some(name),
            Err(error) => {
                let name = String::from_utf8_lossy(error.as_bytes());
                if self.wants(&name) {
                    warn!(
                        "Skipped `{name}` in {}: its name is not UTF-8. Rename it if it is a tenant",
                        self.name()
                    );
                }
                None
            }
        }
    }

    fn name(&self) -> String {
        match self.kind {
            Isolation::Database => format!("the databases of server `{}`", self.server),
            Isolation::Schema | Isolation::Shared => {
                format!(
                    "the schemas of database `{}` on server `{}`",
                    self.url.database(),
                    self.server
                )
            }
        }
    }

    fn wants(&self, name: &str) -> bool {
        let by_name_only = match self.kind {
            Isolation::Database => {
                UNLIKELY_DATABASES.contains(&name) || self.control_database.as_deref() == Some(name)
            }
            Isolation::Schema | Isolation::Shared if OWN_SCHEMAS.contains(&name) => return false,
            Isolation::Schema | Isolation::Shared => UNLIKELY_SCHEMAS.contains(&name),
        };
        let excluded = self.exclude.iter().any(|pattern| matches(pattern, name));
        !excluded && (self.pattern == name || (!by_name_only && matches(&self.pattern, name)))
    }

    fn listed(&self, name: String) -> Listed {
        let (schema, database) = match self.kind {
            Isolation::Database => (None, Some(name.clone())),
            Isolation::Schema | Isolation::Shared => (Some(name.clone()), None),
        };
        Listed {
            id: name,
            isolation: Some(self.kind),
            schema,
            database,
            server: Some(self.server.clone()),
            ..Listed::default()
        }
    }
}

#[async_trait]
impl TenantSource for DiscoverSource {
    fn server(&self) -> Option<&str> {
        Some(&self.server)
    }

    async fn list(&self) -> Result<Vec<Listed>, TenantSourceError> {
        self.look(None).await
    }

    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        Ok(self.look(Some(id)).await?.pop())
    }
}

/// Whether a name matches a pattern: `*` and `%` stand for any characters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where the last star stands, and how much of the name it has swallowed so far. Only the last one ever needs to
    // swallow more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*' | '%') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    p = at + 1;
                    n = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| matches!(c, '*' | '%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "x", true),
            ("tenant_*", "tenant_", true),
            ("tenant_%", "tenant_a", true),
            ("tenant_*", "xtenant_a", false),
            ("t?", "tü", true),
            ("t?", "t", false),
            ("*_db", "a_db_db", true),
            ("*_db", "a_db_", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a.c", "abc", false),
            ("a_c", "abc", false),
            ("", "", true),
            ("", "a", false),
            ("**", "a", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn what_is_not_a_tenant_must_be_named_or_never_is() {
        let wanted = |kind, pattern: &str, name: &str| {
            let source = DiscoverSource {
                kind,
                server: "main".into(),
                url: DatabaseUrl::parse("postgresql://h/app").expect("a URL"),
                pattern: pattern.into(),
                exclude: vec!["tmp_*".into(), "t_template".into()],
                control_database: Some("ops".into()),
            };
            source.wants(name)
        };
        for (pattern, name, expected) in [
            ("*", "t_a", true),
            ("*", "public", false),
            ("publi?", "public", false),
            ("public", "public", true),
            ("herder", "herder", false),
            ("*", "apalis", false),
            ("*", "tmp_1", false),
            ("*", "t_template", false),
        ] {
            assert_eq!(
                wanted(Isolation::Schema, pattern, name),
                expected,
                "{pattern} on {name}"
            );
        }
        for (pattern, name, expected) in [
            ("*", "postgres", false),
            ("postgres", "postgres", true),
            ("*", "ops", false),
            ("ops", "ops", true),
            ("*", "public", true),
            ("*", "herder", true),
        ] {
            assert_eq!(
                wanted(Isolation::Database, pattern, name),
                expected,
                "{pattern} on {name}"
            );
        }
    }
}

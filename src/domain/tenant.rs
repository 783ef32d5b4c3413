//! A tenant: one schema or one database to bring to a revision.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// How the data of one tenant is kept apart from that of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// A schema of its own in a database that others share.
    Schema,
    /// A database of its own.
    Database,
    /// Rows in one schema that all share (row-level security). All such tenants together are one job.
    Shared,
}

impl Isolation {
    /// The word as it stands in tables, JSON and tenant lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = String;

    /// Takes `rls` as another word for `shared`.
    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "schema" => Ok(Self::Schema),
            "database" => Ok(Self::Database),
            "shared" | "rls" => Ok(Self::Shared),
            _ => Err(format!(
                "unknown isolation `{}`: it is schema, database or shared",
                crate::secret::shown(s)
            )),
        }
    }
}

/// The schema where unqualified names go when nobody says otherwise.
pub const PUBLIC: &str = "public";

/// Where a tenant lives. Two tenants with one place are one job: places are equal by their [`identity`](Self::identity).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The name of the server in the config, or `host:port` of a URL that came with the tenant.
    pub server: String,
    /// The database on that server.
    pub database: String,
    /// The schema. None where the whole database is the tenant's.
    pub schema: Option<String>,
}

impl Place {
    /// What makes it one place: server, database and schema. A whole database and its `public` schema are one, however
    /// they are listed: the ledger of both stands there.
    pub fn identity(&self) -> (&str, &str, &str) {
        let schema = self.schema.as_deref().unwrap_or(PUBLIC);
        (&self.server, &self.database, schema)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(
                f,
                "schema `{schema}` of database `{}` on `{}`",
                self.database, self.server
            ),
            None => write!(f, "database `{}` on `{}`", self.database, self.server),
        }
    }
}

/// One tenant, resolved: its place is known. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// The id in the tenant source.
    pub id: String,
    /// How its data is kept apart.
    pub isolation: Isolation,
    /// Where it lives.
    #[serde(flatten)]
    pub place: Place,
    /// Whether it came with a connection URL of its own, which its source gives again at the moment of use.
    pub own_url: bool,
    /// The other tenants of the same place: rows in a shared schema. Their ids, in the source's order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_whole_database_is_its_public_schema() {
        let place = |schema: Option<&str>| Place {
            server: "main".into(),
            database: "app".into(),
            schema: schema.map(str::to_owned),
        };
        let (whole, public, other) = (place(None), place(Some("public")), place(Some("")));
        assert_eq!(whole, public);
        assert!(HashSet::from([whole.clone()]).contains(&public));
        assert_ne!(whole, other);
        assert_ne!(
            whole,
            Place {
                database: "other".into(),
                ..place(None)
            }
        );
    }
}

//! Where tenants are listed. One file per kind; [`build`] is the only list of kinds there is.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::{domain::tenant::Isolation, secret::Secret};

/// One entry of a tenant list, as its source gives it.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The tenant's id. Unique in the list.
    pub id: String,
    /// Its isolation, where the source says. Else it follows from what else is given.
    pub isolation: Option<Isolation>,
    /// Its schema.
    pub schema: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// A connection URL of its own.
    pub url: Option<Secret>,
    /// The name of its server in the config.
    pub server: Option<String>,
    /// Anything else that a person may want to select by.
    pub labels: BTreeMap<String, String>,
}

impl Listed {
    /// Sets the field of that name, and says whether there is one. `labels` is none: it is not a text.
    ///
    /// # Errors
    /// The value makes no sense there.
    pub(crate) fn set(&mut self, field: &str, value: String) -> Result<bool, String> {
        match field {
            "id" => self.id = value,
            "isolation" => self.isolation = Some(value.parse()?),
            "schema" => self.schema = Some(value),
            "database" => self.database = Some(value),
            "url" => self.url = Some(Secret::new(value)),
            "server" => self.server = Some(value),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Why tenants cannot be listed. No text holds a URL.
#[derive(Debug, thiserror::Error)]
pub enum TenantSourceError {
    /// The source cannot be reached or read.
    #[error("cannot read the tenants from {source_name}: {message}")]
    Unreadable {
        /// Which source, e.g. `file tenants.csv`.
        source_name: String,
        /// Why.
        message: String,
    },
    /// It was read, and makes no sense.
    #[error("the tenants from {source_name} are wrong: {message}")]
    Invalid {
        /// Which source.
        source_name: String,
        /// What is wrong, with the row where one is to blame.
        message: String,
    },
}

/// A list of tenants.
#[async_trait]
pub trait TenantSource: Send + Sync {
    /// All of them, in the source's order.
    async fn list(&self) -> Result<Vec<Listed>, TenantSourceError>;

    /// One of them, read anew: an attempt asks for its tenant's URL at the moment of use, and whether a tenant
    /// whose schema is gone was removed on purpose.
    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        Ok(self.list().await?.into_iter().find(|t| t.id == id))
    }
}

pub fn build(
    _c: &crate::config::TenantsConfig,
    _s: &crate::servers::Servers,
) -> Result<Box<dyn TenantSource>, TenantSourceError> {
    Err(TenantSourceError::Invalid {
        source_name: String::new(),
        message: String::new(),
    })
}

//! Where tenants are listed. One file per kind; [`build`] is the only list of kinds there is.

mod catalog;
pub mod discover;
pub mod fastapi_tenancy;
pub mod file;
pub mod sql;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::{
    config::TenantsConfig, database_url::DatabaseUrl, domain::tenant::Isolation, secret::Secret,
    servers::Servers,
};

/// Builds the tenant source that the config names. The only list of sources there is. Connects to nothing yet.
///
/// # Errors
/// What the config says cannot be: a wrong URL, an unknown server.
pub fn build(config: &TenantsConfig, servers: &Servers) -> Result<Box<dyn TenantSource>, TenantSourceError> {
    Ok(match config {
        TenantsConfig::Sql(c) => Box::new(sql::SqlSource::new(c)?),
        TenantsConfig::File(c) => Box::new(file::FileSource::new(c)?),
        TenantsConfig::Schemas(c) => Box::new(discover::DiscoverSource::schemas(c, servers)?),
        TenantsConfig::Databases(c) => Box::new(discover::DiscoverSource::databases(c, servers)?),
        TenantsConfig::FastapiTenancy(c) => Box::new(fastapi_tenancy::FastapiTenancySource::new(c, servers)?),
    })
}

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
    /// Anything else that the source says of it, to select it by.
    pub labels: BTreeMap<String, String>,
    /// What makes no sense in its entry. It concerns a run only where the tenant is selected.
    pub fault: Option<String>,
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
    /// The config cannot be meant so.
    #[error("[tenants] {0}")]
    Config(String),
    /// The source cannot be reached or read.
    #[error("cannot read the tenants from {source_name}: {message}")]
    Unreadable {
        /// Which source, e.g. `file tenants.csv`.
        source_name: String,
        /// Why.
        message: String,
        /// Whether its server only said "not now".
        is_full: bool,
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

    /// The server of tenants' that it asks, by its name in the config: the connection counts against that one's budget. None: it asks
    /// something else.
    fn server(&self) -> Option<&str> {
        None
    }

    /// One of them, read anew: an attempt asks for its tenant's URL at the moment of use, and whether a tenant
    /// whose schema is gone was removed on purpose.
    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        Ok(self.list().await?.into_iter().find(|t| t.id == id))
    }
}

/// A source's own URL.
fn url_in_config(url: &Secret) -> Result<DatabaseUrl, TenantSourceError> {
    DatabaseUrl::parse(url.expose())
        .map_err(|e| TenantSourceError::Config(format!("`url` cannot be used: {e}")))
}

/// The server that a source names, else the only one.
fn server_in_config(name: Option<&str>, servers: &Servers) -> Result<String, TenantSourceError> {
    let names = || servers.names().collect::<Vec<_>>().join(", ");
    match (name, servers.only()) {
        (Some(name), _) if servers.contains(name) => Ok(name.to_owned()),
        (Some(name), _) => Err(TenantSourceError::Config(format!(
            "`server` is `{name}`, which is not in the config{}",
            servers.suggestion(name)
        ))),
        (None, Some(only)) => Ok(only.to_owned()),
        (None, None) if servers.names().next().is_none() => Err(TenantSourceError::Config(
            "this source needs a [servers.NAME]".into(),
        )),
        (None, None) => Err(TenantSourceError::Config(format!(
            "`server` is missing, and the config names several: {}",
            names()
        ))),
    }
}

/// The field that a name is that of, in whichever case. None: it is that of something else.
fn field_of(name: &str) -> Option<&'static str> {
    const FIELDS: [&str; 7] = ["id", "schema", "database", "url", "server", "isolation", "labels"];
    FIELDS.into_iter().find(|field| field.eq_ignore_ascii_case(name))
}

/// Labels from a JSON object. A null is no label.
fn labels_of_object(object: Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let text = |(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some(Ok((name, text.trim().to_owned()))),
        Value::Bool(_) | Value::Number(_) => Some(Ok((name, value.to_string()))),
        Value::Array(_) | Value::Object(_) => Some(Err(format!("label `{name}` is not a text"))),
    };
    object.into_iter().filter_map(text).collect()
}

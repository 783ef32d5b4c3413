//! Tenants that come with a URL of their own.

use std::collections::HashMap;

use crate::{
    database_url::DatabaseUrl,
    domain::tenant::Tenant,
    secret::Secret,
    servers::{Servers, ServersError},
    tenant_source::Listed,
};

/// The URLs of tenants that came with one, by tenant id. They are kept no longer than the command takes.
#[derive(Debug, Default)]
pub struct OwnUrls(HashMap<String, Secret>);

impl OwnUrls {
    /// The own URLs of the tenants of a list.
    pub fn of(listed: &[Listed]) -> Self {
        let own = listed.iter().filter_map(|t| Some((t.id.clone(), t.url.clone()?)));
        Self(own.collect())
    }

    /// A tenant's own. None: its server's URL leads there.
    pub(super) fn get(&self, tenant: &Tenant) -> Option<&Secret> {
        self.0.get(&tenant.id).filter(|_| tenant.own_url)
    }

    /// The URL that leads to a tenant.
    ///
    /// # Errors
    /// No URL does, or it leads to another server than the tenant's.
    pub fn lead_to(&self, tenant: &Tenant, servers: &Servers) -> Result<DatabaseUrl, ServersError> {
        servers.url_for(&tenant.place, self.get(tenant))
    }
}

//! Herder brings a fleet of Postgres tenants to a schema revision.
pub mod config;
pub mod database_url;
pub mod domain;
pub mod runner;
pub mod secret;
pub mod session;
pub mod tenant_source;
pub mod throwaway;

//! Herder brings a fleet of Postgres tenants to a schema revision.
pub mod config;
pub mod database_url;
pub mod domain;
pub mod flow;
pub mod metrics;
pub mod nearest;
pub mod queue;
pub mod runner;
pub mod secret;
pub mod servers;
pub mod session;
pub mod store;
pub mod tenant_source;
pub mod throwaway;

//! The integration tests: one crate, so that it links once.

mod alembic_plans;
mod alembic_process;
mod budget;
mod conformance;
mod deploy;
mod drain;
mod example_fleets;
mod examples;
mod failures;
mod fleet;
mod kills;
mod listener;
#[cfg(feature = "otlp")]
mod otlp;
mod outages;
mod own_connections;
mod places;
mod plans;
mod poison;
mod prometheus;
mod runner_command;
mod runner_sql;
mod runners;
mod secrets;
mod server;
mod sources;
mod steering;
mod tenant;
mod tenant_source;
mod throwaway;
mod traces;
mod trap;
mod venv;
mod webhook;
mod zombies;

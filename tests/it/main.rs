//! The integration tests: one crate, so that it links once.

mod alembic_plans;
mod alembic_process;
mod conformance;
mod examples;
mod runner_command;
mod runner_sql;
mod server;
mod tenant;
mod tenant_source;
mod throwaway;
mod venv;

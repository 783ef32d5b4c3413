//! The integration tests: one crate, so that it links once.

mod conformance;
mod examples;
mod runner_command;
mod runner_sql;
mod tenant;
mod throwaway;
mod venv;

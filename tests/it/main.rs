//! The integration tests: one crate, so that it links once.

mod alembic_process;
mod examples;
mod tenant_source;
mod throwaway;
mod venv;

//! The integration tests: one crate, so that it links once.

mod alembic_process;
mod examples;
mod throwaway;
mod venv;

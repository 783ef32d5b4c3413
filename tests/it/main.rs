//! The integration tests: one crate, so that it links once.

mod conformance;
mod examples;
mod tenant;
mod throwaway;
mod venv;

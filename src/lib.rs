//! Herder.

pub mod runner;

//! Herder.

pub mod throwaway;

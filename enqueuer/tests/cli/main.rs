//! `herder` from the outside, on a real Postgres.

mod demo;
mod fleet;
mod following;
mod reading;
mod refusals;

//! `herder` from the outside, on a real Postgres.

mod fleet;
mod following;
mod reading;
mod refusals;

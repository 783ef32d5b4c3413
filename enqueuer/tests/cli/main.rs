//! `herder` from the outside, on a real Postgres.

mod ci;
mod demo;
mod fleet;
mod following;
mod mistakes;
mod reading;
mod refusals;

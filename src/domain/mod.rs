//! The words of a fleet run as plain data. No I/O here, and no clock: time is an argument.

pub mod backoff;
pub mod failure;
pub mod half;
pub mod job;
pub mod notice;
pub mod outcome;
pub mod plan;
pub mod revision;
pub mod run;
pub mod tenant;
pub mod trace;
pub mod wave;
pub mod worker;

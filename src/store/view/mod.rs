//! What people and programs are shown of runs, jobs and workers. Field names are those of the JSON contract.

mod event;
mod job;
mod run;
mod worker;

pub use self::{
    event::{Event, events},
    job::{JobView, jobs},
    run::{OpenRun, RunView, Tally, open_runs, runs, tally},
    worker::{Unserved, Workers, unserved, workers},
};

//! Who is compared. One file each, one trait, one list.

mod by_hand;
mod calls;
mod herder;
mod python;

use async_trait::async_trait;
use serde::Serialize;

pub(crate) use self::herder::{Herder, Way, end, upgrade};
use self::{by_hand::ByHand, calls::Calls, python::Python};
use crate::{
    args::Task,
    meter::Reading,
    project::Ledger,
    stage::Stage,
    tenants::{Fleet, Tenant},
};

/// A way to bring tenants to the last revision.
#[async_trait]
pub(crate) trait Contender: Send + Sync {
    /// What it is called in the table.
    fn name(&self) -> String;

    /// Which ledger it writes: that is what it is held to.
    fn ledger(&self) -> Ledger;

    /// How many tenants it is given at most. What takes the same time for each tenant is timed over some of them.
    fn most(&self, _: Task) -> usize {
        usize::MAX
    }

    /// Whether it takes part in the first round only.
    fn once(&self) -> bool {
        false
    }

    /// Migrates the tenants, and says what that took. All that can be ready before, is.
    async fn run(&self, stage: &Stage, job: &Job) -> anyhow::Result<Ran>;
}

/// What a contender is given to do.
pub(crate) struct Job {
    pub(crate) fleet: Fleet,
    pub(crate) task: Task,
    /// Those of the fleet that it gets.
    pub(crate) tenants: Vec<Tenant>,
}

/// What became of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Ran {
    pub(crate) reading: Reading,
    /// Herder: from the command's start until the first tenant was claimed. None: none was.
    pub(crate) enqueued: Option<f64>,
    /// Herder: from the first claim to the last settlement.
    pub(crate) worked: Option<f64>,
    /// Herder: how long the first `herder plan` of all took, with its proof.
    pub(crate) proof: Option<f64>,
    /// What went wrong.
    pub(crate) problem: Option<String>,
}

/// The only list of contenders there is.
pub(crate) fn list(fleet: Fleet, task: Task, all: bool) -> Vec<Box<dyn Contender>> {
    let mut list: Vec<Box<dyn Contender>> = vec![
        Box::new(Calls),
        Box::new(Python::warm()),
        Box::new(Python::predecessor(1)),
    ];
    if task == Task::OneStep {
        list.push(Box::new(Python::predecessor(2)));
    }
    let herder = |way, connections, workers| Herder {
        way,
        connections,
        workers,
    };
    list.push(Box::new(herder(Way::Live, 4, 1)));
    // Where a run takes long, only the most telling ones.
    let few = !all && (fleet.count() > 200 || task == Task::Twelve);
    for connections in [1, 4, 8] {
        if few && connections == 1 {
            continue;
        }
        for ledger in [Ledger::Alembic, Ledger::Sqlx] {
            let way = match ledger {
                Ledger::Alembic => Way::Plan,
                Ledger::Sqlx => Way::Sql,
            };
            list.push(Box::new(ByHand { ledger, connections }));
            list.push(Box::new(herder(way, connections, 1)));
            if connections > 1 && (all || !few || (way, connections) == (Way::Plan, 4)) {
                list.push(Box::new(herder(way, connections, 2)));
            }
        }
    }
    list
}

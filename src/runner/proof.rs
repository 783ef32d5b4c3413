//! The proof of a plan that was not written as SQL by a person.

use tokio_util::sync::CancellationToken;

use crate::{
    config::LimitsConfig,
    database_url::DatabaseUrl,
    domain::{tenant::Place, worker::Errand},
};

/// Where a plan is proven: beside one of the tenants that it is for.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The tenant's database.
    pub url: &'a DatabaseUrl,
    /// Where the tenant lives: a schema of that database, or all of it.
    pub place: &'a Place,
    /// The limits of an attempt: nothing in a proof takes longer.
    pub limits: &'a LimitsConfig,
    /// Told to stop. What was made is removed then.
    pub cancel: &'a CancellationToken,
    /// The mark of the fleet whose proof it is. A proof holds the server's service connection, so whatever else bears this mark
    /// there was left behind.
    pub owner: &'a str,
}

impl Ground<'_> {
    /// What the connections of this proof call themselves.
    pub(super) fn label(&self) -> String {
        Errand::Proof.label(self.owner)
    }
}

/// What a proof found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The plan does what the tool does.
    Proven,
    /// It does not, there or anywhere.
    Refuted {
        /// Why: it reads on from "live: ".
        why: String,
    },
    /// Nobody can tell there.
    Unproven {
        /// Why: it reads on from "live: ".
        why: String,
    },
}

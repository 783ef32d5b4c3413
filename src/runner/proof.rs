//! Plans of tools that are not SQL themselves: offered, then proven.

use tokio_util::sync::CancellationToken;

use crate::{config::LimitsConfig, database_url::DatabaseUrl, domain::plan::Plan};

/// What a runner has for the tenants that stand at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The SQL that it would run.
    Plan(Plan),
    /// Only the tool itself can tell what it would do.
    Live {
        /// Why: it reads on from "live: ".
        why: String,
    },
}

/// Where a plan is proven: beside one of the tenants that it is for.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The tenant's database.
    pub url: &'a DatabaseUrl,
    /// Whether the tenant is a schema of it, rather than all of it.
    pub by_schema: bool,
    /// The limits of an attempt: nothing in a proof takes longer.
    pub limits: &'a LimitsConfig,
    /// Told to stop. What was made is removed then.
    pub cancel: &'a CancellationToken,
}

/// What a proof found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The plan does what the tool does.
    Proven,
    /// It does not, or nobody can tell.
    Unproven {
        /// Why: it reads on from "live: ".
        why: String,
    },
}

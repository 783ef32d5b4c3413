//! Alembic, by plans and live: warm Python processes that fork a child for each tenant.
//!
//! ```text
//!    pool.rs      at most N processes; hands out one, takes it back, or drops it
//!    process.rs   one process: asks it, ends it with its whole group
//!    launch.rs    how it is started
//!    stderr.rs    what it says besides its answers
//!    protocol.rs  what goes over the pipe, and the errors
//!    known.rs     a project's history, read once
//!    offline.rs   Alembic's offline script, made into a plan
//!    prover.rs    renders plans, and says which are proven
//!    fit.rs       a plan fitted to its tenants' names and sessions
//!    unfit.rs     what keeps a plan away from a tenant
//!    shadow/      the proof of a plan, in two scratch schemas
//!    digest.rs    what a schema is, as text
//!    said.rs      what a live migration sends beside what its plan sends
//!    aside.rs     what env.py may send besides
//!    runner.rs    what the flow sees of all that
//!    warm/        the other end of the pipe, in Python
//! ```

mod aside;
mod digest;
mod fit;
mod known;
mod launch;
mod offline;
mod pool;
mod process;
mod protocol;
mod prover;
mod runner;
mod said;
mod shadow;
mod stderr;
mod unfit;
mod words;

pub use launch::Launch;
pub use pool::{WarmGuard, WarmPool};
pub use process::WarmProcess;
pub use protocol::{
    Connections, Description, Event, Ledger, Migrated, Migration, Project, Refusal, Rendered, Rendering,
    RevisionFile, ToolError, ToolErrorKind, Versions, WarmError, Whereabouts,
};
pub use runner::AlembicRunner;
pub use shadow::SHADOW_PREFIX;

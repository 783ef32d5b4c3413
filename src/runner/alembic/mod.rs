//! Alembic, live: warm Python processes that take one tenant at a time.
//!
//! ```text
//!    pool.rs      at most N processes; hands out one, takes it back, or drops it
//!    process.rs   one process: starts it, asks it, ends it with its whole group
//!    protocol.rs  what goes over the pipe, and the errors
//!    scrub.rs     takes passwords out of its standard error
//!    runner.rs    what the flow sees of all that
//!    warm/        the other end of the pipe, in Python
//! ```

mod pool;
mod process;
mod protocol;
mod runner;
mod scrub;

pub use pool::{RECYCLE_AFTER, WarmGuard, WarmPool};
pub use process::{Launch, WarmProcess};
pub use protocol::{
    Connections, Description, Direction, Event, Ledger, Migrated, Migration, Project, Refusal, Rendered,
    Rendering, RevisionFile, ToolError, ToolErrorKind, Versions, WarmError,
};
pub use runner::AlembicRunner;

//! Herder brings a fleet of Postgres tenants to a schema revision: one durable job per tenant, any number of workers, never
//! more connections to a server than its budget, killed anywhere and resumed.
//!
//! # What a run is
//!
//! A *run* is one rollout of a target revision over a set of *tenants*. [`flow::enqueue`] lists them, reads all their ledgers,
//! and writes the run with a *job* for each in one transaction: the manifest, frozen. From then on the run lives in the
//! control database, and processes may come and go. Any [`flow::worker`] *claims* a job together with its connection
//! *slots*, makes an *attempt* at it, and *settles* it. The last job of a *wave* opens the next one; the last of all ends
//! the run.
//!
//! # What is true, and where it is written
//!
//! 1. The tenant's own *ledger* (`alembic_version`, `_sqlx_migrations`) is the truth about the tenant. Every attempt reads
//!    it first, and a job succeeds only after it was read back at the target.
//! 2. The job row is the truth about the run. The queue only delivers ids; losing a *delivery* loses nothing.
//! 3. Every write about an attempt matches the job and its *epoch*, the attempt's number. Zero rows means: the job went on
//!    without me, stop.
//! 4. A job is claimed together with its slots, or not at all. Slots are rows, and a row is a lease: nothing is counted.
//!
//! # Who calls whom
//!
//! ```text
//! herder (enqueuer/)          herder-worker (worker/)        arguments, config, exit codes
//!        │                           │
//! flow   enqueue · resolve · inspect · worker · execute · advance · budget     what happens, in which order
//!        │            │              │              │
//! edges  store        queue          runner         tenant_source              SQL · apalis · tools · lists
//!        │            │              │              │
//! domain tenant · revision · run · wave · job · outcome · failure              plain data, pure functions
//! ```
//!
//! Arrows only point down. Only [`store`] holds SQL for the control tables, only [`queue`] names apalis, and the [`domain`]
//! does no I/O and reads no clock. A [`runner`] does its work once and tells the truth; the [`flow`] decides what a failure
//! means. Adding a migration tool is one file beside [`runner::build`], adding a tenant list one beside
//! [`tenant_source::build`].
//!
//! The states with their movers are in [`domain::job`] and [`domain::run`]; `docs/ARCHITECTURE.md` has the map, the
//! invariants, and one tenant's way from enqueue to outcome.

pub mod config;
pub mod database_url;
pub mod domain;
pub mod flow;
pub mod handshake;
mod locked;
pub mod metrics;
pub mod nearest;
pub mod queue;
pub mod runner;
pub(crate) mod scrub;
pub mod secret;
pub mod servers;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod tenant_error;
pub mod tenant_source;
pub mod throwaway;
pub mod webhook;

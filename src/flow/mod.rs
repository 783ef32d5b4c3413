//! What happens, in which order. The flow decides; the edges do.

pub mod budget;
pub mod context;
pub mod enqueue;
pub mod execute;
mod held;
pub mod herald;
pub mod inspect;
mod keeper;
mod plans;
pub mod prove;
mod pulse;
pub mod resolve;
pub mod retry;
pub mod worker;

//! What happens, in which order. The flow makes the decisions; the edges (store, queue, runners, tenant sources) carry them out.

mod advance;
pub mod budget;
pub mod context;
pub mod enqueue;
mod execute;
mod held;
pub mod inspect;
mod kept;
mod link;
pub mod locks;
pub mod notifier;
pub mod own_urls;
mod plans;
mod prove;
pub mod rehearse;
pub mod resolve;
pub mod retry;
pub mod service;
pub mod worker;

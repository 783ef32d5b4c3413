//! What happens, in which order.

pub mod resolve;

//! What people see. Pure functions from reports to text, but for the progress bar.

pub(crate) mod budget;
pub(crate) mod check;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod plan;
pub(crate) mod plan_sql;
pub(crate) mod progress;
pub(crate) mod rehearse;
pub(crate) mod runs;
pub(crate) mod status;
pub(crate) mod style;
pub(crate) mod summary;
pub(crate) mod table;
pub(crate) mod tenants;
pub(crate) mod words;

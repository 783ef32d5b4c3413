//! The migration tools that Herder drives.

pub mod alembic;

//! Herder from the outside, against a real Postgres and a real Alembic.

mod alembic_process;

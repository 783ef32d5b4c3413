//! Where a migration waits for the test.

use std::sync::Arc;

use sqlx::{Connection, PgConnection, PgPool};

use super::{Cluster, Fleet, ask};

/// The first half of the keys of our advisory locks: any number.
const KEY: i32 = 7;

/// What a migration does to wait: for the gate of all, and for that of its own schema.
pub(super) const PASS: &str =
    "select pg_advisory_xact_lock_shared(7, 0), pg_advisory_xact_lock_shared(7, hashtext(current_schema()))";

/// A closed gate. It opens when it is dropped, or asked to.
pub(crate) struct Gate {
    connection: PgConnection,
}

impl Gate {
    async fn close(cluster: &Arc<Cluster>, database: &str, schema: Option<&str>) -> Self {
        let url = cluster.url(database);
        let mut connection = PgConnection::connect(&url).await.expect("a connection");
        sqlx::query("select pg_advisory_lock($1, coalesce(hashtext($2), 0))")
            .bind(KEY)
            .bind(schema)
            .execute(&mut connection)
            .await
            .expect("a gate");
        Self { connection }
    }

    /// Lets all pass.
    pub(crate) async fn open(self) {
        // The server may be stopped by now: then there is no gate any more.
        let _ = self.connection.close().await;
    }
}

impl Fleet {
    /// Stops all gated migrations in the database where the schemas are.
    pub(crate) async fn close_gate(&self) -> Gate {
        Gate::close(&self.cluster, &self.database("home"), None).await
    }

    /// Stops the gated migrations of one schema.
    pub(crate) async fn close_gate_of(&self, schema: &str) -> Gate {
        Gate::close(&self.cluster, &self.database("home"), Some(schema)).await
    }

    /// How many sessions of Herder's wait at a gate.
    pub(crate) async fn at_gate(&self) -> i64 {
        at_gate(&self.home).await
    }

    /// Waits until so many migrations wait at a gate.
    pub(crate) async fn wait_at_gate(&self, count: i64) {
        self.wait_until(&format!("{count} migrations wait at the gate"), async || {
            self.at_gate().await == count
        })
        .await;
    }
}

async fn at_gate(pool: &PgPool) -> i64 {
    ask(
        pool,
        "select count(*) from pg_locks join pg_stat_activity using (pid)
         where locktype = 'advisory' and classid = 7 and not granted and datname = current_database()",
    )
    .await
}

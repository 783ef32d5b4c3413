//! A worker at the door: where the control database is on a server with tenants, the worker's own connections count
//! against that server's budget. A worker that finds no room waits outside, without a connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tracing::{info, warn};

use super::POOL;
use crate::{
    domain::backoff::spread,
    flow::context::Context,
    session::arithmetic,
    store::{
        StoreError,
        server::{self, ServerRow},
        slot::{self, Admission},
        worker::{self, WorkerRow},
    },
};

/// How many connections to the control database a worker has: its pool's, and one for its heartbeat, which must wait for nothing.
pub(in crate::flow) const CONTROL_CONNECTIONS: i64 = POOL as i64 + 1;

/// How often a worker at the door looks whether there is room.
const LOOK: Duration = Duration::from_secs(1);

/// What a look may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The door of a server that the control database shares with tenants.
#[derive(Clone)]
pub(super) struct Door {
    cx: Arc<Context>,
    row: WorkerRow,
    /// The name of that server.
    server: String,
    /// What an attempt needs: so much must be left for it.
    need: i64,
}

impl Door {
    /// None: the control database is on a server of its own, and nothing is counted there.
    pub(super) fn new(cx: &Arc<Context>, row: &WorkerRow) -> Option<Self> {
        let server = cx.servers.control_server()?.to_owned();
        let need = i64::from(cx.runner.connections());
        Some(Self {
            cx: Arc::clone(cx),
            row: row.clone(),
            server,
            need,
        })
    }

    /// Comes back once there is room. `looked` is told of each look until then, and whether it found the budget used up: only as long
    /// as the control database answers.
    pub(super) async fn pass(&self, looked: &(dyn Fn(bool) + Send + Sync)) {
        // Since when it was always answered: who was away cannot tell who is dead.
        let mut unbroken: Option<Instant> = None;
        let mut said = false;
        loop {
            let may_judge = unbroken.is_some_and(|since| since.elapsed() > self.cx.config.worker.lease);
            let look = tokio::time::timeout(TIMEOUT, self.look(may_judge)).await;
            let found = look.unwrap_or(Err(StoreError::Silent(TIMEOUT)));
            looked(matches!(found, Ok(Admission::Full)));
            match found {
                Ok(Admission::Full) => {
                    unbroken.get_or_insert_with(Instant::now);
                    if !std::mem::replace(&mut said, true) {
                        info!(
                            server = self.server,
                            "Waiting: the budget of `{}` has no room for another worker", self.server
                        );
                    }
                }
                Ok(admission) => {
                    if admission == Admission::OnTop {
                        warn!(
                            server = self.server,
                            "The budget of `{}` is too small for this worker's {CONTROL_CONNECTIONS} connections to \
                             the control database: they are not counted",
                            self.server
                        );
                    }
                    return;
                }
                Err(error) => {
                    unbroken = None;
                    if !std::mem::replace(&mut said, true) {
                        warn!(%error, "Cannot register this worker; retrying until it works");
                    }
                }
            }
            tokio::time::sleep(spread(LOOK, rand::random())).await;
        }
    }

    async fn look(&self, may_judge: bool) -> Result<Admission, StoreError> {
        let mut connection = worker::own_connection(&self.cx.pool).await?;
        let admission = self.enter(&mut connection, may_judge).await;
        let _ = connection.close().await;
        admission
    }

    /// Asks for room on a connection to the control database. Asking again changes nothing.
    pub(super) async fn enter(
        &self,
        connection: &mut PgConnection,
        may_judge: bool,
    ) -> Result<Admission, StoreError> {
        if may_judge {
            slot::suspect_lost(connection).await?;
            slot::reclaim_control(connection).await?;
        }
        let mut tx = connection.begin().await?;
        if !server::is_known(&mut tx, &self.server).await? {
            let row = self.row(&mut tx).await?;
            server::ensure(&mut tx, &row).await?;
        }
        let admission = slot::admit(
            &mut tx,
            &self.row.id,
            &self.server,
            CONTROL_CONNECTIONS,
            self.need,
        )
        .await?;
        match admission {
            Admission::Counted => {
                // Slots of a worker without a lease are anybody's.
                worker::beat(&mut tx, &self.row, self.cx.config.worker.lease).await?;
                tx.commit().await?;
            }
            // All holders of the slots are dead: unless one worker starts uncounted, nobody ever frees them.
            Admission::Full if may_judge && !worker::is_anybody_alive(&mut tx).await? => {
                tx.rollback().await?;
                return Ok(Admission::OnTop);
            }
            Admission::OnTop | Admission::Full => tx.rollback().await?,
        }
        Ok(admission)
    }

    /// The server as the config has it: the connection to the control database is one to it.
    async fn row(&self, connection: &mut PgConnection) -> Result<ServerRow, StoreError> {
        let sum = arithmetic::read(connection, self.cx.servers.budget(&self.server)).await?;
        Ok(ServerRow {
            name: self.server.clone(),
            address: self
                .cx
                .servers
                .address(&self.server)
                .unwrap_or_default()
                .to_owned(),
            budget: sum.budget,
        })
    }
}

//! SQL over connections that stay open: as fast as a client can be that does nothing else.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{project::Message, stage::Stage, tenants::Tenant};

/// Sends each tenant its message, over so many connections. One that is in the right database already is used again.
pub(crate) async fn feed(
    stage: &Stage,
    tenants: &[Tenant],
    connections: usize,
    message: &Message,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let tenants: Arc<[Tenant]> = tenants.into();
    let mut lines = Vec::with_capacity(connections);
    for _ in 0..connections.min(tenants.len()) {
        let (next, tenants, message) = (Arc::clone(&next), Arc::clone(&tenants), message.clone());
        let url = stage.server.url("");
        lines.push(tokio::spawn(async move {
            let mut open: Option<(String, PgConnection)> = None;
            while let Some(tenant) = tenants.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut connection = match open.take() {
                    Some((database, connection)) if database == tenant.database => connection,
                    other => {
                        if let Some((_, connection)) = other {
                            connection.close().await?;
                        }
                        PgConnection::connect(&format!("{url}{}", tenant.database)).await?
                    }
                };
                sqlx::raw_sql(AssertSqlSafe(message.to(tenant)))
                    .execute(&mut connection)
                    .await
                    .with_context(|| format!("tenant {}", tenant.id))?;
                open = Some((tenant.database.clone(), connection));
            }
            if let Some((_, connection)) = open {
                connection.close().await?;
            }
            anyhow::Ok(())
        }));
    }
    for line in lines {
        line.await??;
    }
    Ok(())
}

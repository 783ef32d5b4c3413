//! How many connections a server may be asked for.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::{
    context::Context,
    service::{Opening, Service, on_each_server},
    worker::CONTROL_CONNECTIONS,
};
use crate::{
    database_url::DatabaseUrl,
    domain::{failure::chain, wave::Amount, worker::Errand},
    servers::ServersError,
    session::{
        arithmetic::{self, Arithmetic, budget_of},
        pooler,
        privileges::{Owner, closed, owners},
    },
    store::server::ServerRow,
    tenant_error::TenantError,
};

/// How long a person waits for the connection that may ask a server: while ledgers are read, it is taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is taken where a server cannot be asked: enough to go on with, too little to hurt. The next run asks again.
const UNKNOWN_BUDGET: i32 = 4;

/// By how many ways a server is asked at most that refuses at once.
const WAYS: usize = 4;

/// How long a way may take to lead nowhere, and the next one be tried all the same.
const SLOW: Duration = Duration::from_secs(1);

/// The smallest budget of a server with the control database on it that has room for one worker and one attempt which needs
/// `attempt` connections. Below it, the worker's own two come on top.
pub fn least_with_control(attempt: i16) -> i32 {
    // From a budget of three on, one of it is the service connection, and no job's.
    i32::from(attempt) + i32::try_from(CONTROL_CONNECTIONS).unwrap_or(i32::MAX) + 1
}

/// Asks a server for its limits and its sessions.
///
/// # Errors
/// It cannot be reached, or only through a pooler that shares sessions.
async fn ask(
    cx: &Context,
    service: &Service,
    url: &DatabaseUrl,
    budget: Option<Amount>,
) -> Result<Arithmetic, TenantError> {
    let mut session = service.open(Opening::of_server(cx, url, Errand::Inspect)).await?;
    let asked = examined(session.connection(), budget).await;
    match asked {
        // Ledgers are read next, and often there.
        Ok(_) => service.leave(url, session).await,
        Err(_) => service.close(session).await,
    }
    asked
}

/// A server, and what its role may do there.
#[derive(Debug)]
pub struct Survey {
    /// Its limits and its sessions.
    pub sum: Arithmetic,
    /// Whose the schemas are, or the database.
    pub owners: Vec<Owner>,
    /// The schemas that its role may not use, or make anything in.
    pub closed: Vec<String>,
}

/// Asks a server for its limits and sessions, and who owns these schemas (or the database).
///
/// # Errors
/// It cannot be reached, or only through a pooler that shares sessions.
pub async fn survey(
    cx: &Context,
    service: Option<&Service>,
    url: &DatabaseUrl,
    budget: Option<Amount>,
    schemas: &[&str],
) -> Result<Survey, TenantError> {
    let opening = Opening::of_server(cx, url, Errand::Inspect);
    // Without control tables nothing takes turns.
    let mut session = match service {
        Some(service) => service.open(opening).await?,
        None => opening.connect(&cx.mark).await?,
    };
    let connection = session.connection();
    let asked = async {
        Ok(Survey {
            sum: examined(connection, budget).await?,
            owners: owners(connection, schemas).await?,
            closed: closed(connection, schemas).await?,
        })
    }
    .await;
    match service {
        Some(service) => service.close(session).await,
        None => session.close().await,
    }
    asked
}

async fn examined(connection: &mut PgConnection, budget: Option<Amount>) -> Result<Arithmetic, TenantError> {
    match pooler::examine(connection).await? {
        Some(pooled) => Err(TenantError::Pooled(pooled.to_string())),
        None => Ok(arithmetic::read(connection, budget).await?),
    }
}

/// Asks servers of the config about themselves, side by side, each over the connection that is counted for such things.
/// What keeps one from answering is told in words.
pub async fn ask_each(cx: &Context, servers: &[&str]) -> Vec<Result<Arithmetic, String>> {
    on_each_server(servers.iter().map(async |server| {
        let url = match cx.servers.contains(server) {
            true => cx.servers.url(server, None).map_err(|e| chain(&e))?,
            false => return Err("the config has no url for it".into()),
        };
        let service = tokio::time::timeout(PATIENCE, Service::acquire(cx, server)).await;
        let service = service
            .map_err(|_| "its service connection is in use")?
            .map_err(|e| e.to_string())?;
        let asked = ask(cx, &service, &url, cx.servers.budget(server)).await;
        service.release().await;
        let mut sum = asked.map_err(|e| e.to_string())?;
        if cx.servers.own_database(server) == Ok(None) {
            // One of many databases: its limit is its own.
            sum.database = None;
        }
        Ok(sum)
    }))
    .await
}

/// A server's row, with its budget as the config and the server have it, and why the server could not be asked. One of these
/// ways to it will do: a database may have been dropped, or let only its owner in. One that takes long to fail says that
/// the server is away, and is the last.
pub async fn server_row(
    cx: &Context,
    service: &Service,
    name: &str,
    address: &str,
    ways: impl Iterator<Item = Result<DatabaseUrl, ServersError>>,
) -> (ServerRow, Option<TenantError>) {
    let budget = cx.servers.budget(name);
    let row = |budget| ServerRow {
        name: name.to_owned(),
        address: address.to_owned(),
        budget,
    };
    let mut refusal = TenantError::Connection("there is no way to it".into());
    let mut asked: Vec<DatabaseUrl> = Vec::new();
    for way in ways {
        let url = match way {
            Ok(url) if !asked.contains(&url) => url,
            _ => continue,
        };
        let since = Instant::now();
        match ask(cx, service, &url, budget).await {
            Ok(sum) => return (row(sum.budget), None),
            Err(error) => refusal = error,
        }
        asked.push(url);
        if matches!(refusal, TenantError::Pooled(_)) || since.elapsed() > SLOW || asked.len() == WAYS {
            break;
        }
    }
    let unknown = match budget {
        Some(amount @ Amount::Count(_)) => budget_of(0, 0, amount),
        _ => UNKNOWN_BUDGET,
    };
    (row(unknown), Some(refusal))
}

//! Reading the ledgers of a whole fleet: schemas in batches over one connection, databases some at a time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use crate::{
    database_url::DatabaseUrl,
    domain::{
        failure::chain,
        revision::{History, Ledger},
        tenant::{Place, Tenant},
        worker::Errand,
    },
    flow::{
        context::Context,
        own_urls::OwnUrls,
        service::{Opening, Service, on_each_server},
    },
    locked::locked,
    runner::{Subject, as_applied},
    session::{EXIT_LIMIT, LedgerTable, TenantSession},
    store::StoreError,
    tenant_error::TenantError,
};

/// How many ledgers are read in one statement. Measured at 50 to 500 alike; far more exceed the parser's stack, and
/// all in one transaction exceed the lock table.
pub(super) const BATCH: usize = 200;

/// How many schemas are read over one connection. A backend never forgets a table that it has seen, at 8 KB each:
/// 100,000 of them would take a gigabyte of the tenants' server.
const RECYCLE: usize = 5_000;

/// How many slots of a server are borrowed at most, to read so many more databases at a time.
const BORROWED: usize = 7;

/// How often a full server is asked again: a closed session may still count against the role's limit.
const REFUSALS: u32 = 3;

/// How long a server may take to send a tenant away, and be asked for the next one all the same.
const SLOW: Duration = Duration::from_secs(1);

/// What was read of one tenant.
pub type Read = Result<Ledger, TenantError>;

/// Reads the ledger of every tenant, in the given order. Servers are read side by side, each over connections that count
/// against its budget. What cannot be read says why; it holds nobody else back.
///
/// # Errors
/// The control database fails.
pub async fn inspect(cx: &Context, tenants: &[Tenant], own_urls: &OwnUrls) -> Result<Vec<Read>, StoreError> {
    let read = by_server(tenants)
        .into_iter()
        .map(|(server, members)| async move {
            let service = Service::acquire(cx, server).await?;
            let read = inspect_server(cx, &service, tenants, own_urls, &members).await;
            service.release().await;
            Ok::<_, StoreError>(read)
        });
    let mut reads = Vec::with_capacity(tenants.len());
    for server in on_each_server(read).await {
        reads.extend(server?);
    }
    Ok(in_order(tenants.len(), reads))
}

/// Which of these tenants are on each server.
pub(super) fn by_server(tenants: &[Tenant]) -> BTreeMap<&str, Vec<usize>> {
    let mut servers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, tenant) in tenants.iter().enumerate() {
        servers.entry(&tenant.place.server).or_default().push(i);
    }
    servers
}

/// What was read of so many tenants, in their order.
pub(super) fn in_order(tenants: usize, reads: Vec<(usize, Read)>) -> Vec<Read> {
    let unread = || Err(TenantError::Connection("it was not read".into()));
    let mut all: Vec<Read> = std::iter::repeat_with(unread).take(tenants).collect();
    for (i, read) in reads {
        all[i] = read;
    }
    all
}

/// The members of one server, database by database, and some databases at a time where there are slots to spare.
pub(super) async fn inspect_server(
    cx: &Context,
    service: &Service,
    tenants: &[Tenant],
    own_urls: &OwnUrls,
    members: &[usize],
) -> Vec<(usize, Read)> {
    // Tenants with a URL of their own may come as another user: they are read one by one.
    let mut databases: BTreeMap<(&str, Option<usize>), Vec<usize>> = BTreeMap::new();
    for &i in members {
        let alone =
            (tenants[i].own_url || tenants[i].place.schema.is_none() || cx.runner.ledger_table().is_none())
                .then_some(i);
        databases
            .entry((&tenants[i].place.database, alone))
            .or_default()
            .push(i);
    }
    let at_once = 1 + service
        .borrow(databases.len().saturating_sub(1).min(BORROWED))
        .await;
    let opener = Opener {
        cx,
        service,
        down: Mutex::default(),
    };
    let opener = &opener;
    let reads = databases.into_iter().map(|((_, alone), members)| async move {
        let first = &tenants[members[0]];
        let ledgers = match own_urls.lead_to(first, &cx.servers) {
            Err(e) => vec![Err(TenantError::Connection(chain(&e))); members.len()],
            Ok(url) => match (alone, cx.runner.ledger_table()) {
                (None, Some(table)) => {
                    let schemas: Vec<&str> = members
                        .iter()
                        .filter_map(|&i| tenants[i].place.schema.as_deref())
                        .collect();
                    read_schemas(opener, first, &url, &schemas, &table).await
                }
                _ => vec![read_alone(opener, first, &url).await; members.len()],
            },
        };
        members.into_iter().zip(ledgers).collect::<Vec<_>>()
    });
    let reads: Vec<_> = stream::iter(reads).buffer_unordered(at_once).collect().await;
    reads.into_iter().flatten().collect()
}

/// Opens the sessions of an inspection.
struct Opener<'a> {
    cx: &'a Context,
    service: &'a Service,
    /// What is down, by host and port, and why.
    down: Mutex<HashMap<String, TenantError>>,
}

impl Opener<'_> {
    /// A server that does not answer is not asked again for each of its thousand tenants, whatever their URLs. One that
    /// fails at once is: it may mean this tenant alone, and costs nothing.
    async fn open(&self, url: &DatabaseUrl, place: &Place) -> Result<TenantSession, TenantError> {
        if let Some(error) = self.down().get(&url.address()) {
            return Err(error.clone());
        }
        let mut refusals = 0;
        loop {
            // Or the control database's silence would be laid to the server.
            self.service.be_sure().await?;
            let since = Instant::now();
            let opening = Opening {
                place: Some(place),
                ..Opening::of_server(self.cx, url, Errand::Inspect)
            };
            match self.service.open(opening).await {
                Ok(session) => return self.enter(session).await,
                Err(error) if error.to_job_error().is_backpressure() && refusals < REFUSALS => {
                    refusals += 1;
                    tokio::time::sleep(EXIT_LIMIT).await;
                }
                Err(error) => {
                    if matches!(error, TenantError::Connection(_)) && since.elapsed() > SLOW {
                        self.down().insert(url.address(), error.clone());
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn enter(&self, mut session: TenantSession) -> Result<TenantSession, TenantError> {
        match session.enter().await {
            Ok(()) => Ok(session),
            Err(error) => {
                self.service.close(session).await;
                Err(error)
            }
        }
    }

    fn down(&self) -> MutexGuard<'_, HashMap<String, TenantError>> {
        locked(&self.down)
    }
}

/// One tenant over a connection of its own.
async fn read_alone(opener: &Opener<'_>, tenant: &Tenant, url: &DatabaseUrl) -> Read {
    let session = opener.open(url, &tenant.place).await?;
    let subject = Subject {
        tenant: &tenant.id,
        place: &tenant.place,
        url,
    };
    let read = opener.cx.runner.look(session, subject).await;
    opener.service.closed().await;
    read
}

/// Many schemas of one database, over one connection after another.
async fn read_schemas(
    opener: &Opener<'_>,
    first: &Tenant,
    url: &DatabaseUrl,
    schemas: &[&str],
    table: &LedgerTable,
) -> Vec<Read> {
    let place = Place {
        schema: None,
        ..first.place.clone()
    };
    let known = match table.checksum {
        Some(_) => opener.cx.runner.history().await.ok(),
        None => None,
    };
    let mut read = Vec::with_capacity(schemas.len());
    for part in schemas.chunks(RECYCLE) {
        let mut session = match opener.open(url, &place).await {
            Ok(session) => session,
            // The next one would be refused as well, and take its time.
            Err(e) => {
                read.resize(schemas.len(), Err(e));
                break;
            }
        };
        match session.find_ledgers(part, table).await {
            Ok(there) => {
                let known = known.as_deref();
                read.extend(read_batches(&mut session, part, &there, table, known).await);
            }
            Err(e) => read.resize(read.len() + part.len(), Err(e)),
        }
        opener.service.close(session).await;
    }
    read
}

async fn read_batches(
    session: &mut TenantSession,
    schemas: &[&str],
    there: &HashMap<String, bool>,
    table: &LedgerTable,
    known: Option<&History>,
) -> Vec<Read> {
    let mut read: HashMap<&str, Read> = HashMap::with_capacity(schemas.len());
    // Two tenants with one schema are one job by now, but a caller may ask twice.
    let mut seen = HashSet::new();
    let with_ledger: Vec<&str> = schemas
        .iter()
        .copied()
        .filter(|s| there.get(*s) == Some(&true) && seen.insert(*s))
        .collect();
    for batch in with_ledger.chunks(BATCH) {
        match read_batch(session, batch, table, known).await {
            Ok(ledgers) => read.extend(batch.iter().copied().zip(ledgers)),
            // One that may not be read, or was dropped just now, must not hide the others.
            Err(_) => {
                for &schema in batch {
                    let alone = read_batch(session, &[schema], table, known).await;
                    let alone =
                        alone.and_then(|mut read| read.pop().unwrap_or_else(|| Ok(Ledger::default())));
                    read.insert(schema, alone);
                }
            }
        }
    }
    schemas
        .iter()
        .map(|schema| match there.get(*schema) {
            None => Err(TenantError::SchemaMissing((*schema).to_owned())),
            Some(false) => Ok(Ledger::default()),
            Some(true) => read.get(schema).cloned().unwrap_or_else(|| Ok(Ledger::default())),
        })
        .collect()
}

async fn read_batch(
    session: &mut TenantSession,
    schemas: &[&str],
    table: &LedgerTable,
    known: Option<&History>,
) -> Result<Vec<Read>, TenantError> {
    let mut read: Vec<Read> = vec![Ok(Ledger::default()); schemas.len()];
    for row in session.read_ledgers(schemas, table, known.is_some()).await? {
        let tenant = &mut read[row.schema];
        if row.counts
            && let (Some(known), Some(checksum)) = (known, &row.checksum)
            && let Err(edited) = as_applied(known, &row.revision, checksum)
        {
            *tenant = Err(edited);
        }
        if let Ok(ledger) = tenant {
            if row.half {
                ledger.half = Some(row.revision.clone());
            }
            if row.counts {
                ledger.revisions.insert(row.revision);
            }
        }
    }
    Ok(read)
}

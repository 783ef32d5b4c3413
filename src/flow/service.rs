//! The service connection of a server: the one of its budget that belongs to no job. Inspection, proofs,
//! rehearsals and reclaim take turns at it; whoever holds it may connect once, and more often with slots that it borrows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use sqlx::PgPool;
use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::context::Context;
use crate::{
    database_url::DatabaseUrl,
    domain::{backoff::Backoff, tenant::Place, worker::Errand},
    session::{EXIT_GRACE, EXIT_LIMIT, LINGER, Limits, TenantSession},
    store::{
        self, StoreError,
        service::{self, Leave},
    },
    tenant_error::TenantError,
};

/// How long a holder is believed that says nothing: as long as a worker.
const LEASE: Duration = Duration::from_secs(5);

/// How often it says something.
const RENEWAL: Duration = Duration::from_secs(1);

/// How often somebody who waits for it asks: soon at first, because it may have been given back just now.
const POLL: Backoff = Backoff {
    first: Duration::from_millis(25),
    max: Duration::from_millis(200),
};

/// How many servers one process works with at a time: a fleet may have a server for each tenant, and each takes sockets.
pub(super) const SERVERS_AT_ONCE: usize = 32;

/// Waits for what is done on each of many servers, some of them at a time. The answers come in the order of the questions.
pub(super) async fn on_each_server<T>(tasks: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let numbered = tasks
        .into_iter()
        .enumerate()
        .map(|(n, task)| async move { (n, task.await) });
    let mut answers: Vec<(usize, T)> = stream::iter(numbered)
        .buffer_unordered(SERVERS_AT_ONCE)
        .collect()
        .await;
    answers.sort_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// The service connection of one server, held. Dropped without [`release`](Self::release), it is given back
/// behind that, or free when the lease has run out.
pub struct Service {
    pool: PgPool,
    mark: String,
    server: String,
    holder: String,
    /// Whether the one before was lost, and its sessions may still be there.
    inherited: bool,
    /// Whether they were seen to be gone.
    cleared: AtomicBool,
    /// Until when nobody else can have it. None: there is nobody to share it with.
    sure_until: watch::Receiver<Option<Instant>>,
    /// How many slots are borrowed.
    borrowed: Arc<AtomicI64>,
    seat: Mutex<Seat>,
    renewal: JoinHandle<()>,
    /// What gives it back where it is dropped. None: it was given back.
    behind: Option<TaskTracker>,
}

/// What the last session over a service connection left behind.
#[derive(Default)]
struct Seat {
    /// Itself, and where it leads, where another question may come at the same URL.
    open: Option<(DatabaseUrl, TenantSession)>,
    /// From when on the place of one that was closed is free.
    free_from: Option<Instant>,
}

impl Seat {
    async fn close(&mut self, session: TenantSession) {
        session.close().await;
        self.closed();
    }

    fn closed(&mut self) {
        self.free_from = Some(Instant::now() + EXIT_GRACE);
    }
}

/// What a session over a service connection is opened for.
pub(super) struct Opening<'a> {
    pub(super) url: &'a DatabaseUrl,
    /// None: that database, whoever's it is.
    pub(super) place: Option<&'a Place>,
    pub(super) errand: Errand,
    pub(super) limits: Limits,
    pub(super) extra_search_path: &'a [String],
}

impl<'a> Opening<'a> {
    /// One for a question to a server, which any of its databases can answer.
    pub(super) fn of_server(cx: &'a Context, url: &'a DatabaseUrl, errand: Errand) -> Self {
        Self {
            url,
            place: None,
            errand,
            limits: match errand {
                Errand::Inspect => Limits::of_look(&cx.config.limits),
                _ => Limits::QUESTION,
            },
            extra_search_path: &[],
        }
    }

    /// Opens the session, without asking whose turn it is.
    pub(super) async fn connect(&self, mark: &str) -> Result<TenantSession, TenantError> {
        let anywhere = Place {
            server: String::new(),
            database: self.url.database(),
            schema: None,
        };
        let place = self.place.unwrap_or(&anywhere);
        let label = self.errand.label(mark);
        TenantSession::connect(self.url, place, &label, self.limits, self.extra_search_path).await
    }

    /// Whether a session will do that was opened for a question.
    fn is_question(&self) -> bool {
        self.errand == Errand::Inspect && self.place.is_none_or(|place| place.schema.is_none())
    }
}

impl Service {
    /// Waits until nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn acquire(cx: &Context, server: &str) -> Result<Self, StoreError> {
        let since = Instant::now();
        let (mut said, mut asked) = (false, 0);
        loop {
            if let Some(service) = Self::try_acquire(cx, server).await? {
                return Ok(service);
            }
            if !said && since.elapsed() > LEASE {
                said = true;
                info!(
                    server,
                    "Waiting for the service connection of `{server}`: another process is using it"
                );
            }
            asked += 1;
            tokio::time::sleep(POLL.delay(asked, rand::random())).await;
        }
    }

    /// Whether it is that of this server.
    pub(super) fn is_of(&self, server: &str) -> bool {
        self.server == server
    }

    /// Takes it if nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn try_acquire(cx: &Context, server: &str) -> Result<Option<Self>, StoreError> {
        let pool = &cx.pool;
        let holder = Uuid::new_v4().simple().to_string();
        let asked = Instant::now();
        let (inherited, sure_until) =
            match store::answered(service::hold(pool, server, &holder, LEASE)).await? {
                service::Hold::Taken => return Ok(None),
                service::Hold::Ours { lost, .. } => (lost, Some(asked + LEASE)),
                service::Hold::Unknown => (false, None),
            };
        let (tell, sure_until) = watch::channel(sure_until);
        let borrowed = Arc::new(AtomicI64::new(0));
        let renewal = Renewal {
            pool: pool.clone(),
            server: server.to_owned(),
            holder: holder.clone(),
            borrowed: Arc::clone(&borrowed),
            tell,
        };
        Ok(Some(Self {
            pool: pool.clone(),
            mark: cx.mark.clone(),
            server: server.to_owned(),
            holder,
            inherited,
            cleared: AtomicBool::new(false),
            sure_until,
            borrowed,
            seat: Mutex::default(),
            renewal: tokio::spawn(renewal.run()),
            behind: Some(cx.behind.clone()),
        }))
    }

    /// Opens the one session that its holder may have, or one of as many as it has [borrowed](Self::borrow) slots for besides. Each is
    /// to be [closed](Self::close) before the next.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the service connection was lost.
    pub(super) async fn open(&self, opening: Opening<'_>) -> Result<TenantSession, TenantError> {
        loop {
            self.be_sure().await?;
            let mut session = match self.take_seat(&opening).await {
                Some(session) => session,
                None => opening.connect(&self.mark).await?,
            };
            let cleared = match self.is_sure() {
                true => self.clear(&mut session).await.map(|()| true),
                // It took so long that another may have taken its place.
                false => Ok(false),
            };
            if let Ok(true) = cleared {
                return Ok(session);
            }
            self.close(session).await;
            cleared?;
        }
    }

    /// The session that was left there, or room for another one.
    async fn take_seat(&self, opening: &Opening<'_>) -> Option<TenantSession> {
        let mut seat = self.seat.lock().await;
        if let Some((url, mut session)) = seat.open.take() {
            // It may have been left for so long that its server has ended it.
            let is_fit = url == *opening.url && opening.is_question() && session.ping().await.is_ok();
            match is_fit {
                true => return Some(session),
                false => seat.close(session).await,
            }
        }
        let free_from = seat.free_from;
        drop(seat);
        if let Some(free_from) = free_from {
            tokio::time::sleep_until(free_from.into()).await;
        }
        None
    }

    /// Ends a session.
    pub(super) async fn close(&self, session: TenantSession) {
        session.close().await;
        self.closed().await;
    }

    /// A session was ended. Its process on the server goes a moment later.
    pub(super) async fn closed(&self) {
        self.seat.lock().await.closed();
    }

    /// Leaves a session that was opened for a question to the next one.
    pub(super) async fn leave(&self, url: &DatabaseUrl, session: TenantSession) {
        let mut seat = self.seat.lock().await;
        if let Some((_, before)) = seat.open.replace((url.clone(), session)) {
            seat.close(before).await;
        }
    }

    /// Borrows slots for so many more sessions at a time, as far as there are any to spare. Where it cannot, one does.
    pub(super) async fn borrow(&self, most: usize) -> usize {
        if most == 0 || self.inherited || self.sure_until.borrow().is_none() {
            return 0;
        }
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let borrowed = service::borrow(&self.pool, &self.server, &self.holder, most);
        let borrowed = store::answered(borrowed).await.unwrap_or_default();
        self.borrowed.store(borrowed, Ordering::Relaxed);
        usize::try_from(borrowed).unwrap_or_default()
    }

    /// Whether it is held beyond doubt.
    fn is_sure(&self) -> bool {
        is_ahead(&self.sure_until.borrow())
    }

    /// Waits until this process certainly holds the service connection, which a control database that is away can put off.
    ///
    /// # Errors
    /// It was lost.
    pub(super) async fn be_sure(&self) -> Result<(), TenantError> {
        let mut sure_until = self.sure_until.clone();
        let sure = sure_until.wait_for(is_ahead).await;
        sure.map(|_| ()).map_err(|_| self.loss())
    }

    /// What to say where it was lost.
    pub(super) fn loss(&self) -> TenantError {
        TenantError::ControlDatabase(format!("this process lost its turn at server `{}`", self.server))
    }

    /// Comes back once it is not certain any more that this process holds the service connection. Where nobody takes turns, never.
    pub(super) async fn lost(&self) {
        let mut sure_until = self.sure_until.clone();
        loop {
            let Some(until) = *sure_until.borrow_and_update() else {
                return std::future::pending().await;
            };
            tokio::select! {
                renewed = sure_until.changed() => if renewed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(until.into()) => if !self.is_sure() {
                    return;
                },
            }
        }
    }

    /// Ends what a holder that was lost has left there, for one that opens its sessions by itself.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the service connection was lost.
    pub(super) async fn inherit(&self, opening: Opening<'_>) -> Result<(), TenantError> {
        if self.inherited {
            let session = self.open(opening).await?;
            self.close(session).await;
            // It opens its first one at once.
            tokio::time::sleep(EXIT_GRACE).await;
        }
        Ok(())
    }

    /// Ends the sessions of a holder that was lost, on a connection to that server: ours took their place in the budget. Only those
    /// with this fleet's mark: sessions without it are another's, or those of an older Herder, which their own limits end.
    ///
    /// # Errors
    /// The connection broke.
    async fn clear(&self, session: &mut TenantSession) -> Result<(), TenantError> {
        if !self.inherited {
            return Ok(());
        }
        let labels = Errand::ALL.map(|errand| errand.label(&self.mark));
        let is_clear = session.end_named(&labels).await?;
        self.cleared.store(is_clear, Ordering::Relaxed);
        if is_clear && let Err(error) = service::free_lost(&self.pool, &self.server, &self.holder).await {
            debug!(%error, "Cannot free what a lost process has borrowed yet");
        }
        Ok(())
    }

    /// Gives it back. Its sessions must be closed, and have a moment to go before anybody gets their place.
    pub async fn release(mut self) {
        if let Some((_, session)) = self.seat.lock().await.open.take() {
            session.close().await;
        }
        if self.borrowed.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(EXIT_LIMIT).await;
        }
        self.renewal.abort();
        self.behind = None;
        give_back(
            &self.pool,
            &self.server,
            &self.holder,
            EXIT_LIMIT,
            self.in_what_order(),
        )
        .await;
    }

    fn in_what_order(&self) -> Leave {
        match self.inherited && !self.cleared.load(Ordering::Relaxed) {
            true => Leave::Uncleared,
            false => Leave::Clear,
        }
    }
}

/// Gives a service connection back. It is free once its last session has had so long to go.
async fn give_back(pool: &PgPool, server: &str, holder: &str, after: Duration, leave: Leave) {
    let release = service::release(pool, server, holder, after, leave);
    if let Err(error) = store::answered(release).await {
        debug!(%error, "Cannot give back a service connection; its lease will expire");
    }
}

impl Drop for Service {
    /// A work that was stopped in the middle has dropped its sessions as well: their server may be at a statement for a while.
    fn drop(&mut self) {
        self.renewal.abort();
        if let Some(behind) = self.behind.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let (pool, server, holder) = (self.pool.clone(), self.server.clone(), self.holder.clone());
            let (has_borrowed, leave) = (self.borrowed.load(Ordering::Relaxed) > 0, self.in_what_order());
            let giving_back = async move {
                if has_borrowed {
                    // Those slots are free at once.
                    tokio::time::sleep(LINGER).await;
                }
                give_back(&pool, &server, &holder, LINGER, leave).await;
            };
            behind.spawn_on(giving_back, &runtime);
        }
    }
}

/// Whether that moment is yet to come. None: it never comes.
fn is_ahead(until: &Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

/// What keeps a hold from running out.
struct Renewal {
    pool: PgPool,
    server: String,
    holder: String,
    borrowed: Arc<AtomicI64>,
    tell: watch::Sender<Option<Instant>>,
}

impl Renewal {
    /// Until the hold is lost.
    async fn run(self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let (asked, lent) = (Instant::now(), self.borrowed.load(Ordering::Relaxed));
            let hold = service::hold(&self.pool, &self.server, &self.holder, LEASE);
            match store::answered(hold).await {
                // A control database that has forgotten what it lent has gone back in time.
                Ok(service::Hold::Ours { borrowed, .. }) if borrowed >= lent => {
                    let _ = self.tell.send(Some(asked + LEASE));
                }
                Ok(service::Hold::Unknown) => {}
                Ok(_) => {
                    let server = &self.server;
                    warn!(
                        server,
                        "Lost the service connection of `{server}`: this process did not renew it in time"
                    );
                    return;
                }
                Err(error) => debug!(%error, "Cannot renew the hold of a service connection yet"),
            }
        }
    }
}

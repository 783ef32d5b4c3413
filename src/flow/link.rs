//! The link to a tenant's server while an attempt waits for an answer. One that is cut without a word (a firewall forgets
//! it, a machine loses its power) is as silent as a server at work on a long statement, and sqlx sets no keepalives. The
//! server does: within half a minute it knows, and ends the session. So it is asked whether that is still there; and where it
//! gives no sign of life at all, nobody waits for it.

use std::time::Duration;

use tracing::{debug, warn};

use super::{
    context::Context,
    service::{Opening, Service},
};
use crate::{
    database_url::DatabaseUrl,
    domain::{job::Claim, worker::Errand},
    session::knock::{NoAnswer, knock},
    tenant_error::TenantError,
};

/// How long an attempt takes before its server is knocked at, and how often that is done.
const KNOCK: Duration = Duration::from_secs(10);

/// After how many knocks in a row without an answer a server has vanished.
const SILENT_KNOCKS: u32 = 3;

/// After how many knocks a server is asked for the session as well. That takes as long as a server takes to find a link dead:
/// 10 s of silence and three keepalives, 5 s apart.
const KNOCKS_TO_A_LOOK: u32 = 3;

/// How long a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Comes back once the server has no such session any more, or has vanished, and says which. Nothing else counts: a server that answers
/// and cannot be asked may be full, and at work for us all the same.
pub(super) async fn cut(cx: &Context, claim: &Claim, backend: i32) -> TenantError {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(KNOCK).await;
        match watch.look(cx, claim, backend).await {
            Ok(None) => {}
            Ok(Some(cut)) => return cut,
            Err(error) => debug!(%error, "Cannot look after the link to a tenant's server"),
        }
    }
}

/// What an attempt has seen of its server while it waited.
#[derive(Default)]
struct Watch {
    url: Option<DatabaseUrl>,
    /// How many knocks were answered.
    answered: u32,
    /// How many were not, of late.
    silent: u32,
}

impl Watch {
    /// Knocks, and now and then asks for the session. Some: there is no link any more.
    async fn look(
        &mut self,
        cx: &Context,
        claim: &Claim,
        backend: i32,
    ) -> Result<Option<TenantError>, TenantError> {
        let url = match &mut self.url {
            Some(url) => url,
            unknown => unknown.insert(cx.url_of(claim).await?),
        };
        match knock(url).await {
            Ok(()) => (self.answered, self.silent) = (self.answered + 1, 0),
            Err(NoAnswer::Unasked(error)) => return Err(TenantError::Connection(error.to_string())),
            Err(NoAnswer::Silence(error)) => {
                self.silent += 1;
                let address = url.address();
                if self.silent == 1 {
                    warn!(%error, "The server at {address} gives no sign of life; an attempt is waiting for it");
                }
                return Ok((self.silent == SILENT_KNOCKS).then_some(TenantError::Vanished(address)));
            }
        }
        if !self.answered.is_multiple_of(KNOCKS_TO_A_LOOK) {
            return Ok(None);
        }
        let looked = tokio::time::timeout(LOOK_LIMIT, has_session(cx, claim, url, backend)).await;
        let is_there = looked.map_err(|_| TenantError::Silent(LOOK_LIMIT))??;
        let why = "its server has ended the session: the link to it was cut without a word";
        Ok((!is_there).then(|| TenantError::Connection(why.into())))
    }
}

/// Whether a server has this session, as it says over its service connection. While somebody else has that, it is not asked.
async fn has_session(
    cx: &Context,
    claim: &Claim,
    url: &DatabaseUrl,
    backend: i32,
) -> Result<bool, TenantError> {
    let taken = Service::try_acquire(cx, &claim.place.server).await;
    let Some(service) = taken.map_err(|e| TenantError::ControlDatabase(e.to_string()))? else {
        return Ok(true);
    };
    let asked = async {
        let mut session = service.open(Opening::of_server(cx, url, Errand::Inspect)).await?;
        let found = session.sees(backend).await;
        service.close(session).await;
        found
    };
    let asked = asked.await;
    service.release().await;
    asked
}

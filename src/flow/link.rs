//! The link to a tenant's server while an attempt waits for an answer. One that is cut without a word (a firewall forgets
//! it, a machine loses its power) is as silent as a server at work on a long statement, and sqlx sets no keepalives. The
//! server does: within half a minute it knows, and ends the session. So it is asked whether that is still there.

use std::time::Duration;

use tracing::debug;

use super::{
    context::Context,
    service::{Opening, Service},
};
use crate::{
    domain::{job::Claim, worker::Errand},
    tenant_error::TenantError,
};

/// How long an attempt takes before its link is looked after, and how often that is done. As long as a server takes to
/// find a link dead: 10 s of silence and three keepalives, 5 s apart.
const LOOK: Duration = Duration::from_secs(30);

/// How long a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Comes back once the server has no such session any more. Nothing else counts: a server that cannot be asked may be full, and
/// at work for us all the same.
pub(super) async fn is_cut(cx: &Context, claim: &Claim, backend: i32) {
    loop {
        tokio::time::sleep(LOOK).await;
        match tokio::time::timeout(LOOK_LIMIT, has_session(cx, claim, backend)).await {
            Ok(Ok(false)) => return,
            Ok(Ok(true)) => {}
            Ok(Err(error)) => debug!(%error, "Cannot look after the link to a tenant's server"),
            Err(_) => debug!("Cannot look after the link to a tenant's server in {LOOK_LIMIT:?}"),
        }
    }
}

/// Whether a server has this session, as it says over its service connection. While somebody else has that, it is not asked.
async fn has_session(cx: &Context, claim: &Claim, backend: i32) -> Result<bool, TenantError> {
    let url = cx.url_of(claim).await?;
    let taken = Service::try_acquire(cx, &claim.place.server).await;
    let Some(service) = taken.map_err(|e| TenantError::ControlDatabase(e.to_string()))? else {
        return Ok(true);
    };
    let asked = async {
        let mut session = service
            .open(Opening::of_server(cx, &url, Errand::Inspect))
            .await?;
        let found = session.sees(backend).await;
        service.close(session).await;
        found
    };
    let asked = asked.await;
    service.release().await;
    asked
}

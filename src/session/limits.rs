//! How long a session of Herder's own may last, sit idle, or outlive its owner.

use std::time::Duration;

use crate::config::LimitsConfig;

/// How long a session of ours may sit idle before the server ends it. A paused worker is found by nothing else; a
/// healthy one says something every second.
const IDLE_LIMIT: Duration = Duration::from_secs(20);

/// How long an idle session may take to answer. After that its link is dead: TCP alone would never say so.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often the server looks whether we are still there while it works for us. It costs next to nothing, and a
/// killed worker's statement would hold its locks to its end otherwise.
pub(crate) const CLIENT_CHECK: Duration = Duration::from_secs(1);

/// How long a server's process takes to go once its client has: closing is a message that nobody answers. Whoever takes the
/// place of a session at once waits for that. On an idle machine it is a millisecond.
pub(crate) const EXIT_GRACE: Duration = Duration::from_millis(10);

/// How long a server's process takes to go on a machine with too much to do: on two cores with three times as much, 50 ms were seen. Who takes a place by way of the
/// control database waits so long, where nobody is kept waiting by it.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_millis(50);

/// How long a backend may outlive a client that broke off in the middle of a statement: until it looks, and a little.
pub(crate) const LINGER: Duration = CLIENT_CHECK.saturating_add(Duration::from_millis(200));

/// How long a session may live on whose link is dead: until its idle limit, less the time that it was waited for.
pub(crate) const SILENCE: Duration = IDLE_LIMIT
    .saturating_sub(ANSWER_LIMIT)
    .saturating_add(Duration::from_millis(200));

/// How long a session's statements may wait for a lock, and take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a lock.
    pub lock_timeout: Duration,
    /// In all.
    pub statement_timeout: Duration,
}

impl Limits {
    /// For a question to a server that is about nothing but its catalog, or its sessions.
    pub(crate) const QUESTION: Self = Self {
        lock_timeout: Duration::from_secs(60),
        statement_timeout: Duration::from_secs(60),
    };

    /// For a question for which a tenant's tables are read as well: a migration may hold them.
    pub(crate) fn of_look(limits: &LimitsConfig) -> Self {
        Self {
            lock_timeout: limits.lock_timeout.min(Self::QUESTION.lock_timeout),
            statement_timeout: limits.statement_timeout.min(Self::QUESTION.statement_timeout),
        }
    }
}

impl From<&LimitsConfig> for Limits {
    fn from(limits: &LimitsConfig) -> Self {
        Self {
            lock_timeout: limits.lock_timeout,
            statement_timeout: limits.statement_timeout,
        }
    }
}

/// What every session of Herder's own on a tenants' server is opened with, so that it outlives neither its statement nor
/// its owner by much.
pub(super) fn own_settings(limits: Limits) -> [(&'static str, String); 8] {
    let ms = |d: Duration| d.as_millis().to_string();
    [
        ("lock_timeout", ms(limits.lock_timeout)),
        ("statement_timeout", ms(limits.statement_timeout)),
        ("idle_in_transaction_session_timeout", ms(IDLE_LIMIT)),
        ("idle_session_timeout", ms(IDLE_LIMIT)),
        ("client_connection_check_interval", ms(CLIENT_CHECK)),
        ("tcp_keepalives_idle", "10".into()),
        ("tcp_keepalives_interval", "5".into()),
        ("tcp_keepalives_count", "3".into()),
    ]
}

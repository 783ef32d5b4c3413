//! How long a session of Herder's own may last, sit idle, or outlive its owner.

use std::time::Duration;

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

/// The same on a machine with too much to do: on two cores with three times as much, 50 ms were seen. Who takes a place by way of the
/// control database waits so long, where nobody is kept waiting by it.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_millis(50);

/// How long a backend may outlive a client that broke off in the middle of a statement: until it looks, and a little.
pub(crate) const LINGER: Duration = CLIENT_CHECK.saturating_add(Duration::from_millis(200));

/// How long a session may live on whose link is dead: until its idle limit, less the time that it was waited for.
pub(crate) const SILENCE: Duration = IDLE_LIMIT
    .saturating_sub(ANSWER_LIMIT)
    .saturating_add(Duration::from_millis(200));

/// How long a question to a tenants' server may take that reads nothing but its catalog.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);

/// What every session of Herder's own on a tenants' server is opened with, so that it outlives neither its statement nor
/// its owner by much.
pub(crate) fn own_settings(
    lock_timeout: Duration,
    statement_timeout: Duration,
) -> [(&'static str, String); 8] {
    let ms = |d: Duration| d.as_millis().to_string();
    [
        ("lock_timeout", ms(lock_timeout)),
        ("statement_timeout", ms(statement_timeout)),
        ("idle_in_transaction_session_timeout", ms(IDLE_LIMIT)),
        ("idle_session_timeout", ms(IDLE_LIMIT)),
        ("client_connection_check_interval", ms(CLIENT_CHECK)),
        ("tcp_keepalives_idle", "10".into()),
        ("tcp_keepalives_interval", "5".into()),
        ("tcp_keepalives_count", "3".into()),
    ]
}

/// The same where it only asks.
pub(crate) fn asking_settings() -> [(&'static str, String); 8] {
    own_settings(QUESTION_LIMIT, QUESTION_LIMIT)
}

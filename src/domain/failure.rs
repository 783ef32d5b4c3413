//! Why an attempt failed, and whether trying again can help.

use serde::{Deserialize, Serialize};

/// What is recorded of a failure: no secret, and no parameter value, ever stands in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word of ours for the kind of failure, e.g. `lock_timeout`, `ledger_mismatch`, `locked_by_other`.
    pub reason: String,
    /// The server's code, where the server said it.
    pub sqlstate: Option<String>,
    /// What went wrong, in one line.
    pub message: String,
    /// The revision that was being applied or undone.
    pub revision: Option<String>,
    /// The statement that failed, cut to a readable length.
    pub statement: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl JobError {
    /// Whether the server only said "not now": it is full, or a role or a database has all the connections that it may
    /// have (53300), or it is not up yet (57P03). However long that lasts, nothing has failed. A statement that raises the
    /// same was let in, and failed: its reason is another.
    pub fn is_backpressure(&self) -> bool {
        let code = self.sqlstate.as_deref().unwrap_or_default();
        is_refusal(code) && self.reason == reason_of_sqlstate(code, &self.message)
    }

    /// The same of a plan's error, where the migration tool might have done without what the plan failed over, and failed for
    /// another reason: that one comes second, since it is not what is wrong with the tenant.
    #[must_use]
    pub fn and_tool(self, tool: &Self) -> Self {
        let also = tool.hint.iter().map(|hint| format!("; {hint}"));
        Self {
            hint: Some(format!(
                "the migration tool itself may do without that, but could not be asked: {}{}",
                tool.message,
                also.collect::<String>()
            )),
            ..self
        }
    }

    /// The same without NUL, which no text of PostgreSQL's can hold, and a tool's output may; and cut, since a fleet has as
    /// many of them as tenants.
    pub fn storable(&self) -> Self {
        let clean = |text: &String| cut(text, MESSAGE_LIMIT).replace('\0', "\u{fffd}");
        Self {
            reason: clean(&self.reason),
            sqlstate: self.sqlstate.as_ref().map(clean),
            message: clean(&self.message),
            revision: self.revision.as_ref().map(clean),
            statement: self.statement.as_ref().map(clean),
            hint: self.hint.as_ref().map(clean),
        }
    }
}

/// Whether trying again can help, and who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// It may pass by itself: requeue with backoff. The attempt counts.
    Transient,
    /// Not this tenant's fault: the server is down or full, somebody else holds the tenant. Requeue; nothing counts.
    Infrastructure,
    /// The same would happen again: fail the tenant at once.
    Permanent,
}

/// How a server says that a statement took longer than `statement_timeout`, in the languages that it speaks. The same
/// SQLSTATE, 57014, is that of a statement which a person has cancelled, and no other field of the answer tells the two
/// apart. The language is that of `lc_messages`, which only superusers may set.
const STATEMENT_TIMEOUT: [&str; 11] = [
    "statement timeout",
    "storniere Anfrage wegen Zeitüberschreitung der Anfrage",
    "cancelando la sentencia debido a que se agotó el tiempo de espera de sentencias",
    "annulation de la requête à cause du délai écoulé pour l'exécution de l'instruction",
    "annullamento dell'istruzione a causa di timeout",
    "ステートメントのタイムアウトのためステートメントをキャンセルしています",
    "명령실행시간 초과로 작업을 취소합니다",
    "выполнение оператора отменено из-за тайм-аута",
    "avbryter sats på grund av sats-timeout",
    "виконання оператора скасовано через тайм-аут",
    "由于语句执行超时，正在取消查询命令",
];

/// Whether a statement was cancelled by somebody. What is not known to be a timeout is taken for that: a person who ends a
/// statement that does harm must not see it again a second later, and a timeout that was mistaken for one costs a
/// `herder retry`.
fn is_cancelled(sqlstate: &str, message: &str) -> bool {
    sqlstate == "57014" && !STATEMENT_TIMEOUT.iter().any(|words| message.contains(words))
}

/// Whether two sessions were at the same row of a catalog at once: `CREATE OR REPLACE FUNCTION`, `CREATE EXTENSION IF NOT EXISTS`
/// and GRANT do not wait for each other. Whoever comes a second time finds it done.
fn is_a_race(sqlstate: &str, message: &str) -> bool {
    match sqlstate {
        "XX000" => ["tuple concurrently updated", "tuple concurrently deleted"].contains(&message),
        // In whatever language: no table of a user's has an index of such a name.
        "23505" => message
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word.starts_with("pg_") && word.ends_with("_index")),
        _ => false,
    }
}

/// The class of a server's answer, by its SQLSTATE and, where that is not enough, its words.
///
/// Source: appendix A of the PostgreSQL manual. What is not listed is permanent: a migration that fails with a code
/// that nobody thought of must be looked at, not run five times.
pub fn classify_sqlstate(sqlstate: &str, message: &str) -> FailureClass {
    match sqlstate {
        code if is_cancelled(code, message) => FailureClass::Permanent,
        _ if is_a_race(sqlstate, message) => FailureClass::Transient,
        // lock_not_available, deadlock_detected, serialization_failure, query_canceled (statement_timeout),
        // object_in_use.
        "55P03" | "40P01" | "40001" | "57014" | "55006" => FailureClass::Transient,
        // too_many_connections, cannot_connect_now, admin_shutdown, crash_shutdown, idle_session_timeout,
        // idle_in_transaction_session_timeout.
        "53300" | "57P03" | "57P01" | "57P02" | "57P05" | "25P03" => FailureClass::Infrastructure,
        // read_only_sql_transaction: a server that is being failed over, or whose disk is full, may be so for a while.
        "25006" => FailureClass::Transient,
        // A full disk or lack of memory may pass, but a migration that fills the disk must not fill it for ever.
        "53100" | "53200" => FailureClass::Transient,
        code if code.starts_with("08") => FailureClass::Infrastructure,
        _ => FailureClass::Permanent,
    }
}

/// The word for what the server said of a statement, where there is no other.
pub const SQL_ERROR: &str = "sql_error";

/// The word for a statement that somebody cancelled.
pub const CANCELLED: &str = "statement_cancelled";

/// Whether the code is that of a server which lets nobody in for now.
pub fn is_refusal(sqlstate: &str) -> bool {
    matches!(sqlstate, "53300" | "57P03")
}

/// Whether the code is that of a server, or a connection, which is gone. The server's own such words are FATAL; as an ERROR
/// it is what a migration raises, or what it met on a connection of its own (`dblink`, `postgres_fdw`).
pub fn is_about_server(sqlstate: &str) -> bool {
    is_refusal(sqlstate)
        || matches!(sqlstate, "57P01" | "57P02" | "57P05" | "25P03")
        || sqlstate.starts_with("08")
}

/// A word for the codes that people meet most, else [`SQL_ERROR`].
pub fn reason_of_sqlstate(sqlstate: &str, message: &str) -> &'static str {
    match sqlstate {
        code if is_cancelled(code, message) => CANCELLED,
        "55P03" => "lock_timeout",
        "40P01" => "deadlock",
        "40001" => "serialization_failure",
        "57014" => "statement_timeout",
        "53300" => "too_many_connections",
        "25006" => "read_only",
        "53100" => "disk_full",
        "53200" => "out_of_memory",
        "57P01" | "57P02" => "server_shutdown",
        "57P03" => "server_starting",
        "25P03" | "57P05" => "idle_timeout",
        "28P01" | "28000" => "wrong_credentials",
        "3D000" => "database_missing",
        "3F000" => "schema_missing",
        "42501" => "permission_denied",
        code if code.starts_with("08") => "connection_lost",
        _ => SQL_ERROR,
    }
}

/// The most characters of a statement that are kept: enough to find it in a file.
pub const STATEMENT_LIMIT: usize = 500;

/// The most characters of a message or a hint that are kept: more than a person reads, and a fleet's worth of them is
/// still a page. What a migration raises can be megabytes.
pub const MESSAGE_LIMIT: usize = 4_000;

/// Cuts a text for the record, at a character's border.
pub fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An error with its sources, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_classified_by_blast_radius() {
        assert_eq!(classify_sqlstate("55P03", ""), FailureClass::Transient);
        assert_eq!(classify_sqlstate("53300", ""), FailureClass::Infrastructure);
        assert_eq!(classify_sqlstate("08006", ""), FailureClass::Infrastructure);
        assert_eq!(classify_sqlstate("42P07", ""), FailureClass::Permanent);
        assert_eq!(classify_sqlstate("XX000", ""), FailureClass::Permanent);
        for (code, message, class) in [
            ("XX000", "tuple concurrently updated", FailureClass::Transient),
            (
                "23505",
                "duplicate key value violates unique constraint \"pg_extension_name_index\"",
                FailureClass::Transient,
            ),
            (
                "23505",
                "duplicate key value violates unique constraint \"users_pkey\"",
                FailureClass::Permanent,
            ),
        ] {
            assert_eq!(classify_sqlstate(code, message), class, "{message}");
        }
    }

    #[test]
    fn only_a_statement_that_took_too_long_is_tried_again_and_not_one_that_a_person_ended() {
        for (message, reason, class) in [
            (
                "canceling statement due to statement timeout",
                "statement_timeout",
                FailureClass::Transient,
            ),
            (
                "storniere Anfrage wegen Zeitüberschreitung der Anfrage",
                "statement_timeout",
                FailureClass::Transient,
            ),
            (
                "canceling statement due to user request",
                "statement_cancelled",
                FailureClass::Permanent,
            ),
            (
                "storniere Anfrage wegen Benutzeraufforderung",
                "statement_cancelled",
                FailureClass::Permanent,
            ),
        ] {
            assert_eq!(reason_of_sqlstate("57014", message), reason, "{message}");
            assert_eq!(classify_sqlstate("57014", message), class, "{message}");
        }
    }

    #[test]
    fn what_is_stored_is_short_however_much_was_said() {
        let error = JobError {
            message: "m".repeat(3_000_000),
            hint: Some("h".repeat(3_000_000)),
            ..JobError::default()
        };
        let stored = error.storable();
        assert_eq!(stored.message.chars().count(), MESSAGE_LIMIT + 1);
        assert!(stored.message.ends_with('…') && stored.hint.as_ref().is_some_and(|h| h.ends_with('…')));
        assert_eq!(stored.storable(), stored);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("äöü", 2), "äö…");
        assert_eq!(cut("äöü", 3), "äöü");
    }
}

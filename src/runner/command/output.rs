//! What a program said: its end, in one line that may be recorded.

use crate::scrub::Scrubber;

/// The most characters of a program's last words that are kept.
const MESSAGE_LIMIT: usize = 800;

/// How many of its last lines that can be.
const MESSAGE_LINES: usize = 5;

/// How far from the end the server's error is looked for. psql, asked to be verbose, adds up to eleven lines to it.
const ERROR_LINES: usize = 12;

/// What the server's messages that end a statement or a session begin with, once libpq or a tool has passed them on.
const SEVERITIES: [&str; 3] = ["ERROR:", "FATAL:", "PANIC:"];

/// The last so many bytes of a stream.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    cut: bool,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            cut: false,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Twice the limit, so that not every byte moves all the others.
        if self.bytes.len() > 2 * self.limit {
            self.bytes.drain(..self.bytes.len() - self.limit);
            self.cut = true;
        }
    }

    /// Whether the beginning is gone.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The text, without what a terminal would act on and Postgres would not store.
    pub(super) fn text(&self) -> String {
        plain(&String::from_utf8_lossy(&self.bytes))
    }
}

/// Takes out escape sequences and control characters.
fn plain(text: &str) -> String {
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                chars.next();
            }
            '\n' => out.push('\n'),
            '\t' => out.push(' '),
            // What a progress bar wrote over is not what was meant to stay.
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    out.push('\n');
                }
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// The last lines as one, without secrets. Where the server's error stands a little before them, they begin there.
pub(super) fn last_words(text: &str, secrets: &[String]) -> String {
    let text = Scrubber::new(secrets.iter().cloned()).clean(text);
    let lines = full_lines(&text);
    let last = lines.len().saturating_sub(MESSAGE_LINES);
    let start = last_error(&lines).map_or(last, |error| last.min(error));
    let line = lines[start..][..MESSAGE_LINES.min(lines.len() - start)].join(" | ");
    let surplus = line.chars().count().saturating_sub(MESSAGE_LIMIT);
    match line.char_indices().nth(surplus) {
        Some((from, _)) if surplus > 0 => format!("…{}", &line[from..]),
        _ => line,
    }
}

/// What a program said, without empty lines.
fn full_lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}

/// Which of the last lines passes on an error of the server's, the last one if several do. What a transaction answers that had
/// failed before is none.
fn last_error(lines: &[&str]) -> Option<usize> {
    const ECHO: &str = "current transaction is aborted";
    let is_error = |line: &&str| SEVERITIES.iter().any(|word| line.contains(word)) && !line.contains(ECHO);
    let first = lines.len().saturating_sub(ERROR_LINES);
    Some(first + lines[first..].iter().rposition(is_error)?)
}

/// The server's code, where the program passed it on: `(SQLSTATE 42P07)`, `SQL State  : 42P07`, `SQLSTATE[42P07]`, or
/// psql's verbose `ERROR:  42P07:`. The last one counts, except for the echo in a transaction that had failed before.
pub(super) fn sqlstate(text: &str) -> Option<String> {
    const ECHO: &str = "25P02";
    let mut codes = text.lines().flat_map(|line| {
        let upper = line.to_ascii_uppercase();
        let named = ["SQLSTATE", "SQL STATE"].iter().find_map(|word| {
            let behind = &line[upper.find(word)? + word.len()..];
            code(behind.trim_start_matches([' ', ':', '=', '[', '(', '"', '\'']))
        });
        let verbose = SEVERITIES.iter().find_map(|word| {
            let behind = line[line.find(word)? + word.len()..].trim_start();
            behind.get(5..6).filter(|c| *c == ":").and_then(|_| code(behind))
        });
        named.or(verbose)
    });
    codes.rfind(|code| code != ECHO).or_else(|| passing(text))
}

/// The code of what the server says may pass, where a program hands on its words alone, as psql does unless it is told to be verbose.
fn passing(text: &str) -> Option<String> {
    const WORDS: [(&str, &str); 8] = [
        ("canceling statement due to lock timeout", "55P03"),
        ("could not obtain lock on", "55P03"),
        ("deadlock detected", "40P01"),
        ("could not serialize access", "40001"),
        ("canceling statement due to statement timeout", "57014"),
        ("too many clients already", "53300"),
        ("too many connections for", "53300"),
        ("remaining connection slots are reserved", "53300"),
    ];
    let lines = full_lines(text);
    let last = lines.len().saturating_sub(MESSAGE_LINES);
    // Only the last error may decide: the program got over all that it said before.
    let deciding = match last_error(&lines) {
        Some(error) if error < last => &[],
        Some(error) => &lines[error..=error],
        None => &lines[last..],
    };
    let said = deciding.iter().rev().find_map(|line| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().find(|(words, _)| line.contains(words))
    });
    said.map(|(_, code)| (*code).to_owned())
}

/// Whether a program's last words are that it lost its server, in the words of libpq and of those who pass the server's
/// on. Clients that do so give no code: there is nobody any more who would tell them one.
pub(super) fn lost_connection(text: &str) -> bool {
    const WORDS: [&str; 7] = [
        "server closed the connection unexpectedly",
        "connection to server was lost",
        "connection has been closed unexpectedly",
        "terminating connection due to",
        "the database system is ",
        "connection refused",
        "connection reset by peer",
    ];
    let lines = full_lines(text);
    let last = lines.len().saturating_sub(MESSAGE_LINES);
    // The program got over what it said before its last error.
    let start = last_error(&lines).map_or(last, |error| last.max(error));
    lines[start..].iter().any(|line| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().any(|words| line.contains(words))
    })
}

/// The code at the beginning of a text. All codes of PostgreSQL have at least two digits, which few words have.
fn code(text: &str) -> Option<String> {
    let code = text.get(..5)?;
    let ends = !text[5..].starts_with(|c: char| c.is_ascii_alphanumeric());
    let shape = code.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase());
    let digits = code.chars().filter(char::is_ascii_digit).count();
    (ends && shape && digits >= 2).then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_code_is_found_where_tools_put_it() {
        for (text, code) in [
            ("ERROR: relation \"a\" exists (SQLSTATE 42P07)", Some("42P07")),
            (
                "psql:x.sql:3: ERROR:  42P07: relation \"a\" already exists",
                Some("42P07"),
            ),
            (
                "SQL State  : 55P03\nError Code : 0\nMessage : canceling",
                Some("55P03"),
            ),
            (
                "SQLSTATE[40P01]: Deadlock detected: 7 ERROR:  deadlock",
                Some("40P01"),
            ),
            (
                "ERROR:  55P03: lock\nERROR:  25P02: current transaction is aborted",
                Some("55P03"),
            ),
            ("ERROR:  TABLE: not one", None),
            (
                "psql: error: connection to server failed: FATAL:  too many connections for role \"lim\"",
                Some("53300"),
            ),
            ("ERROR:  canceling statement due to lock timeout\n", Some("55P03")),
            (
                "ERROR:  deadlock detected\nDETAIL:  Process 1 waits",
                Some("40P01"),
            ),
            ("ERROR:  relation \"a\" already exists", None),
            (
                "FATAL:  sorry, too many clients already; trying again\nERROR:  column \"x\" does not exist",
                None,
            ),
            (
                "ERROR:  canceling statement due to lock timeout\nagain\nERROR:  column \"x\" does not exist\n\
                 LINE 1: select x\n               ^",
                None,
            ),
            (
                "ERROR:  deadlock detected\nERROR:  current transaction is aborted, commands ignored",
                Some("40P01"),
            ),
            ("pq: deadlock detected", Some("40P01")),
            ("SQLSTATE", None),
            ("sqlstate: äöüäö", None),
            ("İSQLSTATE 42P07", Some("42P07")),
        ] {
            assert_eq!(sqlstate(text).as_deref(), code, "{text}");
        }
    }

    #[test]
    fn a_lost_server_is_told_from_a_failed_migration() {
        for (text, lost) in [
            (
                "psql: error: connection to server at \"127.0.0.1\", port 5432 failed: server closed the connection \
                 unexpectedly\n\tThis probably means the server terminated abnormally\n\tbefore or while processing the request.",
                true,
            ),
            (
                "psql: error: connection to server at \"db\" failed: Connection refused\n\tIs the server running on that \
                 host and accepting TCP/IP connections?",
                true,
            ),
            (
                "psql: error: connection to server at \"db\" failed: FATAL:  the database system is in recovery mode",
                true,
            ),
            (
                "psql:1.up:3: FATAL:  terminating connection due to administrator command",
                true,
            ),
            (
                "psql: error: connection to server at \"db\" failed: FATAL:  password authentication failed for user \"a\"",
                false,
            ),
            ("psql:1.up:3: ERROR:  relation \"a\" already exists", false),
            ("connection refused\n1\n2\n3\n4\n5\nno such table", false),
            (
                "Connection refused, trying again\nERROR:  column \"x\" does not exist",
                false,
            ),
            (
                "ERROR:  column \"x\" does not exist\nserver closed the connection unexpectedly",
                true,
            ),
            ("", false),
        ] {
            assert_eq!(lost_connection(text), lost, "{text}");
        }
    }

    #[test]
    fn last_words_hold_no_secret_and_no_control() {
        let mut tail = Tail::new(1000);
        tail.push(b"one\n\n\x1b[31mtwo\x1b[0m\0\xff\r\n10%\r20%\nurl postgresql://u:p%40ss@h/d pw p@ss ");
        tail.push(b"and mysql://x:other@h");
        assert_eq!(
            last_words(&tail.text(), &["p@ss".into(), String::new()]),
            "one | two\u{fffd} | 10% | 20% | url postgresql://u:***@h/d pw *** and mysql://x:***@h"
        );
        assert_eq!(
            last_words(&"ä".repeat(2000), &[]).chars().count(),
            MESSAGE_LIMIT + 1
        );
    }

    #[test]
    fn last_words_hold_no_secret_in_other_words() {
        let secret = "p@ss/w:rd%25 #x\"y'ü\\z".to_owned();
        let shell = r#"p@ss/w:rd%25\ \#x\"y\'ü\\z"#;
        let json = serde_json::to_string(&secret).expect("JSON");
        let twice = serde_json::to_string(&json).expect("JSON");
        let ascii = json.replace('/', "\\/").replace('ü', "\\u00FC");
        let ini = secret.replace('%', "%%");
        let text = format!("ini={ini} shell={shell} json={json} twice={twice} ascii={ascii} octal={shell}");
        let text = text.replace(
            "octal=p@ss/w:rd%25\\ \\#x\\\"y\\'ü",
            "octal=p@ss/w:rd%25 #x\"y\\'\\303\\274",
        );
        assert_eq!(
            last_words(&text, &[secret]),
            r#"ini=*** shell=*** json="***" twice="\"***\"" ascii="***" octal=***"#
        );
    }

    #[test]
    fn last_words_begin_with_the_servers_error() {
        let verbose = "ERROR:  23505: duplicate key\nDETAIL:  Key\nSCHEMA NAME:  t\nTABLE NAME:  t\n\
                       CONSTRAINT NAME:  t_key\nLOCATION:  here";
        let words = last_words(&format!("one\ntwo\n{verbose}"), &[]);
        assert!(
            words.starts_with("ERROR:  23505: duplicate key | DETAIL:"),
            "{words}"
        );
        assert_eq!(last_words("ERROR: one\ntwo", &[]), "ERROR: one | two");
        let long_ago = format!("ERROR: one{}", "\ntwo".repeat(20));
        assert!(last_words(&long_ago, &[]).starts_with("two"));
    }

    #[test]
    fn a_tail_keeps_the_end_only() {
        let mut tail = Tail::new(10);
        for _ in 0..1000 {
            tail.push(b"0123456789");
        }
        tail.push(b"end");
        assert!(tail.is_cut());
        assert!(
            tail.text().len() <= 20 && tail.text().ends_with("9end"),
            "{tail:?}"
        );
    }
}

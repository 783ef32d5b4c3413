//! stdout is data, stderr is talk. Both go through `anstream`, which honours NO_COLOR and leaves out colours off a
//! terminal.

use std::io::Write;

use anyhow::Context as _;
use serde::Serialize;

use crate::render::{
    progress,
    style::{HINT, WARNING},
};

/// Writes data to stdout. The text brings its own line ends.
pub(crate) fn data(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// Writes one JSON object to stdout, under the number of its shape.
pub(crate) fn json(report: &impl Serialize) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        version: u32,
        #[serde(flatten)]
        report: &'a T,
    }
    let text = serde_json::to_string(&Versioned { version: 1, report }).context("cannot write JSON")?;
    data(&(text + "\n"))
}

/// Says something on stderr, above a progress bar if there is one. Nobody listening is no error: what we do matters
/// more than what we say about it.
pub(crate) fn say(text: &str) {
    progress::aside(|| {
        let mut stderr = anstream::stderr().lock();
        let _ = writeln!(stderr, "{text}");
    });
}

/// Something is not as it should be, and we go on regardless.
pub(crate) fn warning(text: &str) {
    say(&format!("{WARNING}warning:{WARNING:#} {text}"));
}

/// What to type next.
pub(crate) fn hint(text: &str) {
    say(&format!("{HINT}hint:{HINT:#} {text}"));
}

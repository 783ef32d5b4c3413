//! stdout is data, stderr is talk. Both go through `anstream`, which honours NO_COLOR and leaves out colours off a
//! terminal.

use std::io::{self, Write};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    hint,
    problem::is_broken_pipe,
    render::{
        progress,
        style::{HINT, WARNING},
    },
};

/// Data that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct Unwritten(#[source] pub(crate) io::Error);

/// Writes data to stdout. The text brings its own line ends.
pub(crate) fn data(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Unwritten(error).into())
}

/// What a command found, where its exit code says so as well: that holds for a reader who has gone, too.
pub(crate) fn answer(written: anyhow::Result<()>) -> anyhow::Result<()> {
    written.or_else(|error| match is_broken_pipe(&error) {
        true => Ok(()),
        false => Err(error),
    })
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
    say(&format!("{HINT}hint:{HINT:#} {}", hint::complete(text)));
}

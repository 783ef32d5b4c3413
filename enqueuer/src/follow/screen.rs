//! Where the lines about a run go.

use std::io::IsTerminal;

use crate::{output, render::progress::Bar};

/// Where the lines go.
#[derive(Debug)]
pub(super) enum Screen {
    /// A bar; only lines about what went wrong stay.
    Terminal(Option<Bar>),
    /// All lines, to stdout: they are what was asked for.
    Stdout,
    /// All lines, to stderr: stdout is for something else.
    Stderr,
}

impl Screen {
    /// Lines that are data.
    pub(super) fn of_stdout() -> Self {
        match std::io::stdout().is_terminal() && Bar::can_stand() {
            true => Self::Terminal(None),
            false => Self::Stdout,
        }
    }

    /// Lines beside a command whose data is something else.
    pub(super) fn of_stderr() -> Self {
        match Bar::can_stand() {
            true => Self::Terminal(None),
            false => Self::Stderr,
        }
    }

    /// A line about what happened. `stays`: a person at a terminal wants to find it later.
    pub(super) fn tell(&self, line: &str, stays: bool) -> anyhow::Result<()> {
        match self {
            Self::Stdout => output::data(&format!("{line}\n"))?,
            Self::Terminal(_) if !stays => {}
            Self::Stderr | Self::Terminal(_) => output::say(line),
        }
        Ok(())
    }

    /// The block at the end.
    pub(super) fn sum_up(&self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Stdout => output::data(text)?,
            Self::Stderr | Self::Terminal(_) => output::say(text.trim_end()),
        }
        Ok(())
    }

    /// The bar over so many tenants, where there is one.
    pub(super) fn bar(&mut self, tenants: usize) -> Option<&mut Bar> {
        match self {
            Self::Terminal(bar) => Some(bar.get_or_insert_with(|| Bar::new(tenants))),
            Self::Stdout | Self::Stderr => None,
        }
    }

    /// Takes the bar off the terminal.
    pub(super) fn take_down(&mut self) {
        if let Self::Terminal(bar) = self {
            bar.take();
        }
    }
}

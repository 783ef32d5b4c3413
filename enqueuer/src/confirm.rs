//! Asking a person, where there is one.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::problem::Problem;

/// Off a terminal there is nobody to ask: that is an error, whose hint names `--yes`.
pub(crate) fn on_terminal(command: &str) -> anyhow::Result<()> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    Err(Problem::usage(format!("`herder {command}` must be confirmed"))
        .hint("not running on a terminal: pass --yes to confirm")
        .into())
}

/// Says what will happen and asks for a yes, or for the number of tenants.
pub(crate) fn asked(what: &str, tenants: Option<usize>) -> anyhow::Result<bool> {
    let wanted = match tenants {
        Some(n) => format!("the number of tenants ({n}) or `yes`"),
        None => "`yes`".to_owned(),
    };
    let mut stderr = anstream::stderr();
    write!(stderr, "{what}\nType {wanted} to continue: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let answer = answer.trim().to_ascii_lowercase();
    Ok(answer == "yes" || tenants.is_some_and(|n| answer == n.to_string()))
}

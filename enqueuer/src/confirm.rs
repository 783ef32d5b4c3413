//! Asking a person, where there is one.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::{problem::Problem, signals::Interrupts};

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
    ask(what, tenants)?;
    Ok(is_yes(&answer()?, tenants))
}

/// The same where Ctrl-C does not end the process by itself any more. None: it was the answer.
pub(crate) async fn asked_unless_interrupted(
    what: &str,
    tenants: Option<usize>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<bool>> {
    ask(what, tenants)?;
    // What it reads after an interrupt is nobody's: the process is about to end.
    let answer = tokio::task::spawn_blocking(answer);
    tokio::select! {
        answer = answer => Ok(Some(is_yes(&answer??, tenants))),
        () = interrupts.next() => {
            // Off the line of the question.
            let _ = writeln!(anstream::stderr());
            Ok(None)
        }
    }
}

fn ask(what: &str, tenants: Option<usize>) -> io::Result<()> {
    let wanted = match tenants {
        Some(n) => format!("the number of tenants ({n}) or `yes`"),
        None => "`yes`".to_owned(),
    };
    let mut stderr = anstream::stderr();
    write!(stderr, "{what}\nType {wanted} to continue: ")?;
    stderr.flush()
}

fn answer() -> io::Result<String> {
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer)
}

fn is_yes(answer: &str, tenants: Option<usize>) -> bool {
    let answer = answer.trim().to_ascii_lowercase();
    answer == "yes" || tenants.is_some_and(|n| answer == n.to_string())
}

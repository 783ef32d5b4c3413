//! Errors as people meet them: what failed, the chain, a blank line, what to do next, and the exit code.

use std::{error::Error as StdError, io};

use anstyle::Style;
use herder::{
    config::ConfigError,
    domain::{revision::HistoryError, run::short},
    flow::{context::ContextError, enqueue::EnqueueError, resolve::ResolveError},
    store::StoreError,
    tenant_error::{READ_ONLY, TenantError},
    throwaway::ThrowawayError,
};
use sqlx::error::DatabaseError;

use crate::{
    exit::Exit,
    hint,
    output::Unwritten,
    render::style::{ERROR, HINT},
};

/// An error that knows its exit code and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Problem {
    message: String,
    exit: Exit,
    hint: Option<String>,
    source: Option<anyhow::Error>,
}

impl Problem {
    /// Asked for what cannot be done.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Config, database or tool are not fit for it.
    pub(crate) fn set_up(message: impl Into<String>) -> Self {
        Self::new(Exit::SetUp, message)
    }

    /// Nothing that anybody asked for.
    pub(crate) fn unexpected(message: impl Into<String>) -> Self {
        Self::new(Exit::Unexpected, message)
    }

    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            exit,
            hint: None,
            source: None,
        }
    }

    /// What to do next.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// What caused it.
    pub(crate) fn caused_by(self, source: impl Into<anyhow::Error>) -> Self {
        Self {
            source: Some(source.into()),
            ..self
        }
    }
}

/// The exit code of a command that ended with this error.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(exit_of_one).unwrap_or(Exit::Unexpected)
}

fn exit_of_one(cause: &(dyn StdError + 'static)) -> Option<Exit> {
    if let Some(problem) = cause.downcast_ref::<Problem>() {
        return Some(problem.exit);
    }
    if is_in_doubt(cause) {
        return Some(Exit::Unexpected);
    }
    if let Some(error) = cause.downcast_ref::<EnqueueError>() {
        return Some(match error {
            EnqueueError::Resolve(
                ResolveError::Unknown { .. }
                | ResolveError::NoLabel { .. }
                | ResolveError::NothingLeft(_)
                | ResolveError::Shared { .. },
            )
            | EnqueueError::Overlap { .. } => Exit::Usage,
            EnqueueError::Runner(error) => exit_of_runner(error),
            EnqueueError::Stopped | EnqueueError::Abandoned => Exit::Interrupted,
            EnqueueError::Resolve(_)
            | EnqueueError::Source(_)
            | EnqueueError::Store(_)
            | EnqueueError::Unusable { .. }
            | EnqueueError::Budget { .. } => Exit::SetUp,
        });
    }
    let set_up = cause.is::<ConfigError>()
        || cause.is::<ContextError>()
        || cause.is::<StoreError>()
        || cause.is::<ThrowawayError>();
    set_up.then_some(Exit::SetUp)
}

/// What the control database said, if it is that.
fn store_error<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a StoreError> {
    match cause.downcast_ref::<EnqueueError>() {
        Some(EnqueueError::Store(error)) => Some(error),
        _ => cause.downcast_ref::<StoreError>(),
    }
}

/// Whether nobody can tell if what was asked for was done.
fn is_in_doubt(cause: &(dyn StdError + 'static)) -> bool {
    matches!(store_error(cause), Some(StoreError::InDoubt(_)))
}

/// Before there is a run, a runner can only complain about the target or about its project.
fn exit_of_runner(error: &TenantError) -> Exit {
    match error {
        TenantError::History(
            HistoryError::UnknownTarget(_)
            | HistoryError::IsBase(_)
            | HistoryError::AmbiguousTarget { .. }
            | HistoryError::AmbiguousStep(..)
            | HistoryError::SeveralHeads(_)
            | HistoryError::NotListed(_),
        ) => Exit::Usage,
        _ => Exit::SetUp,
    }
}

/// What to do about it, where anybody in the chain knows.
pub(crate) fn hint_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_of_one)
}

fn hint_of_one(cause: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(problem) = cause.downcast_ref::<Problem>() {
        return problem.hint.clone();
    }
    if let Some(error) = cause.downcast_ref::<TenantError>() {
        return error.hint();
    }
    if let Some(StoreError::NotAllowed { role, .. }) = cause.downcast_ref::<StoreError>() {
        return Some(format!(
            "run `herder setup --grant {role}` as the role that created the tables"
        ));
    }
    if store_error(cause).is_some_and(StoreError::is_about_read_only) {
        return Some(READ_ONLY.into());
    }
    if is_in_doubt(cause) {
        return Some("`herder runs` shows what was done".into());
    }
    if let Some(error) = cause.downcast_ref::<EnqueueError>() {
        return match error {
            EnqueueError::Runner(TenantError::History(HistoryError::SeveralHeads(_))) => {
                Some("merge them, or name a revision with --to".into())
            }
            EnqueueError::Runner(error) | EnqueueError::Unusable { source: error, .. } => error.hint(),
            EnqueueError::Overlap { run, .. } => {
                let id = short(run);
                Some(format!(
                    "--queue waits until it has ended; `herder cancel {id}` ends it; --exclude leaves out its tenants"
                ))
            }
            EnqueueError::Resolve(ResolveError::Unknown { .. }) => {
                Some("`herder tenants` lists them all".into())
            }
            EnqueueError::Resolve(ResolveError::NoLabel { .. }) => {
                Some("labels are what [tenants] lists of a tenant besides its place".into())
            }
            EnqueueError::Resolve(ResolveError::Wrong { .. }) => {
                Some("mend the list, or leave such tenants out with `--exclude ID`".into())
            }
            EnqueueError::Budget { server, .. } => Some(format!("raise [servers.{server}] `budget`")),
            EnqueueError::Resolve(_)
            | EnqueueError::Source(_)
            | EnqueueError::Store(_)
            | EnqueueError::Stopped
            | EnqueueError::Abandoned => None,
        };
    }
    let config = match cause.downcast_ref::<ContextError>() {
        Some(ContextError::Runner(error)) => return error.hint(),
        Some(ContextError::Config(error)) => error,
        Some(_) => return None,
        None => cause.downcast_ref::<ConfigError>()?,
    };
    match config {
        ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Some("`herder init` creates a config; --config or HERDER_CONFIG selects another file".into())
        }
        ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("make it readable for this user; --config or HERDER_CONFIG selects another file".into())
        }
        ConfigError::Unreadable { .. } => {
            Some("the config must be a TOML file; --config or HERDER_CONFIG selects another file".into())
        }
        ConfigError::Missing { hint, .. } => Some((*hint).to_owned()),
        _ => None,
    }
}

/// Whether whoever read our output has gone: `herder runs | head` ends quietly. Any other pipe that breaks, that to a
/// database say, is a failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<Unwritten>()
            .is_some_and(|Unwritten(e)| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The text for stderr, with colours that `anstream` takes out where they are not wanted.
pub(crate) fn render(error: &anyhow::Error) -> String {
    let paint = |style: Style, word: &str| format!("{style}{word}:{style:#}");
    let mut text = String::new();
    for (n, cause) in causes(error).into_iter().enumerate() {
        match n {
            0 => text += &format!("{} {cause}\n", paint(ERROR, "error")),
            _ => text += &format!("  caused by: {cause}\n"),
        }
    }
    if let Some(hint) = hint_of(error) {
        text += &format!("\n{} {}\n", paint(HINT, "hint"), hint::complete(&hint));
    }
    text
}

/// The whole chain in one line.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    causes(error).join(": ").replace('\n', " ")
}

/// The chain from the outermost on. Some errors repeat their source: it is said once.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(words_of) {
        if !causes.last().is_some_and(|said| said.contains(&cause)) {
            causes.push(cause);
        }
    }
    causes
}

/// What an error says. A server's in its own words: sqlx adds where in its source that is said.
fn words_of(cause: &(dyn StdError + 'static)) -> String {
    if let Some(refusal) = cause.downcast_ref::<Box<dyn DatabaseError>>() {
        return refusal.message().to_owned();
    }
    match cause.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(refusal)) => refusal.message().to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn plain(error: &anyhow::Error) -> String {
        anstream::adapter::strip_str(&render(error)).to_string()
    }

    #[test]
    fn an_error_says_what_why_and_what_next() {
        let error = anyhow::Error::from(
            Problem::usage("cannot start a run: revision 44 is not in ./alembic")
                .caused_by(anyhow::anyhow!("the newest revision there is 43"))
                .hint("build the image from the commit that adds 44, or pass --to 43"),
        );
        insta::assert_snapshot!(plain(&error), @r"
        error: cannot start a run: revision 44 is not in ./alembic
          caused by: the newest revision there is 43

        hint: build the image from the commit that adds 44, or pass --to 43
        ");
        assert_eq!(exit_of(&error), Exit::Usage);
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let io = io::Error::new(io::ErrorKind::BrokenPipe, "gone");
        let error = anyhow::Error::from(io)
            .context("it is gone")
            .context("cannot write");
        insta::assert_snapshot!(plain(&error), @r"
        error: cannot write
          caused by: it is gone
        ");
        assert!(!is_broken_pipe(&error));
        let gone = Unwritten(io::Error::new(io::ErrorKind::BrokenPipe, "gone"));
        assert!(is_broken_pipe(&anyhow::Error::from(gone).context("no")));
        assert_eq!(exit_of(&error), Exit::Unexpected);
    }

    #[test]
    fn a_missing_config_points_to_init() {
        let error = herder::config::Config::load("/nowhere/herder.toml".as_ref())
            .context("cannot start")
            .expect_err("no such file");
        insta::assert_snapshot!(plain(&error), @r"
        error: cannot start
          caused by: cannot read the config /nowhere/herder.toml
          caused by: No such file or directory (os error 2)

        hint: `herder init` creates a config; --config or HERDER_CONFIG selects another file
        ");
        assert_eq!(exit_of(&error), Exit::SetUp);
    }
}

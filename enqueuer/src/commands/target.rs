//! The target that a command was given: which way it leads, and what to say where it leads nowhere.

use herder::{
    config::RunnerConfig,
    domain::revision::{Direction, HistoryError, Target},
    flow::{context::Context, enqueue::EnqueueError},
    tenant_error::TenantError,
};

use crate::{problem::Problem, signals::Interrupts};

/// Refuses a target that can only lead the other way.
pub(super) fn must_lead(
    direction: Direction,
    target: &Target,
    hint: impl FnOnce() -> String,
) -> Result<(), Problem> {
    let other = match (direction, target) {
        (Direction::Upgrade, Target::Base | Target::Relative(..0)) => "a downgrade",
        (Direction::Downgrade, Target::Head | Target::Relative(0..)) => "an upgrade",
        _ => return Ok(()),
    };
    Err(Problem::usage(format!("`{target}` is {other} target")).hint(hint()))
}

/// What is found out ahead of a run. None: it was interrupted. `what`: the complaint where it cannot be.
pub(super) async fn found<T>(
    cx: &Context,
    interrupts: &mut Interrupts,
    what: &str,
    direction: Direction,
    work: impl Future<Output = Result<T, EnqueueError>>,
) -> anyhow::Result<Option<T>> {
    match super::unless_interrupted(cx, interrupts, work).await {
        Ok(found) => Ok(Some(found)),
        Err(EnqueueError::Stopped | EnqueueError::Abandoned) => Ok(None),
        Err(error) => Err(cannot(cx, what, Some(direction), error).await),
    }
}

/// Why something cannot be done with these migrations, and what to do about it. `direction`: where a command was given its
/// target.
pub(super) async fn cannot(
    cx: &Context,
    what: &str,
    direction: Option<Direction>,
    error: EnqueueError,
) -> anyhow::Error {
    let target = match &error {
        EnqueueError::Runner(TenantError::History(HistoryError::UnknownTarget(target))) => target,
        EnqueueError::Runner(TenantError::History(base @ HistoryError::IsBase(target))) => {
            let hint = format!("use `herder downgrade --to {target}`");
            return Problem::usage(format!("{what}: {base}")).hint(hint).into();
        }
        _ => return anyhow::Error::from(error).context(what.to_owned()),
    };
    let newest = match cx.runner.history().await {
        Ok(history) => history.revisions().last().map(|revision| revision.id.clone()),
        Err(_) => None,
    };
    let problem = Problem::usage(format!(
        "{what}: revision {target} is not in {}",
        project(&cx.config.runner)
    ));
    let word = match direction {
        // sqlx's word for it.
        Some(Direction::Downgrade) if target == "0" => Some("base"),
        _ => ["head", "base"]
            .into_iter()
            .find(|word| target.eq_ignore_ascii_case(word)),
    };
    match newest {
        Some(newest) => problem
            .caused_by(anyhow::anyhow!("the newest revision there is {newest}"))
            .hint(match direction {
                _ if word.is_some() => format!("did you mean --to {}?", word.unwrap_or_default()),
                _ if target.contains('@') => "a branch is no target: name the revision to go to".to_owned(),
                Some(Direction::Upgrade) => {
                    format!("build from the commit that adds {target}, or pass --to {newest}")
                }
                // The newest is where most tenants are: nothing is undone by going there.
                Some(Direction::Downgrade) => format!(
                    "build from the commit that adds {target}, or pass --to with a revision that is there, -N, or base"
                ),
                None => format!("build from the commit that adds {target}"),
            })
            .into(),
        None => problem
            .hint("no migrations found: check the path in [runner]")
            .into(),
    }
}

/// Where the migrations are, as a person would write it.
fn project(runner: &RunnerConfig) -> String {
    let path = match runner {
        RunnerConfig::Alembic(config) => &config.config,
        RunnerConfig::Sql(config) => &config.directory,
        RunnerConfig::Command(_) => return "the list of revisions".into(),
    };
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(below) => format!("./{}", below.display()),
        Err(_) => path.display().to_string(),
    }
}

//! Reaching the control database, with words for each way in which it cannot be reached.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use herder::{
    config::{Config, ControlConfig},
    database_url::DatabaseUrl,
    domain::run::{RunId, short},
    handshake,
    session::pooler::{self, Pooled},
    store::{
        self,
        run::Found,
        setup::{SetupState, setup_state},
        view::{self, RunView},
    },
    tenant_error::{POOLED_HINT, TenantError},
};
use sqlx::{Connection, PgConnection, PgPool};

use crate::problem::Problem;

/// How long a first connection may take. A server that does not answer for so long is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection for reading, one for a command that comes in between.
const CONNECTIONS: u32 = 2;

/// Reads the config.
pub(crate) fn config(path: &Path) -> anyhow::Result<Config> {
    Ok(Config::load(path)?)
}

/// Connects to a control database that is set up.
pub(crate) async fn connect(control: &ControlConfig) -> anyhow::Result<PgPool> {
    let pool = connect_unchecked(control).await?;
    match unfit(setup_state(&pool).await?) {
        Some(problem) => Err(problem.into()),
        None => Ok(pool),
    }
}

/// Why a control database cannot be used as it is.
pub(crate) fn unfit(state: SetupState) -> Option<Problem> {
    let (problem, remedy) = state.problem()?;
    Some(Problem::set_up(format!("the control database {problem}")).hint(remedy))
}

/// Connects to a control database, whatever is in it. The first connection is made here: a pool would try again
/// until its time is up, and then say no more than that.
pub(crate) async fn connect_unchecked(control: &ControlConfig) -> anyhow::Result<PgPool> {
    let url = DatabaseUrl::parse(control.url.expose())
        .map_err(|error| Problem::set_up("[control] `url` cannot be used").caused_by(error))?;
    let pool = store::pool(&control.url, "herder", CONNECTIONS)?;
    let options = pool.connect_options();
    let connecting = async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let pooled = pooler::examine(&mut connection).await?;
        connection.close().await?;
        Ok(pooled)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(None)) => Ok(pool),
        Ok(Ok(Some(pooled))) => Err(pooled_control(pooled).into()),
        Ok(Err(error)) => Err(match pooler::refusal(&error) {
            Some(pooled) => pooled_control(pooled),
            None => refused(error, &url),
        }
        .into()),
        Err(_) => Err(unreachable(&url)
            .caused_by(anyhow::anyhow!(
                "no answer in {} seconds",
                CONNECT_TIMEOUT.as_secs()
            ))
            .into()),
    }
}

fn pooled_control(pooled: Pooled) -> Problem {
    Problem::set_up("the control database cannot be used through [control] `url`")
        .caused_by(TenantError::Pooled(pooled.to_string()))
        .hint(POOLED_HINT)
}

fn unreachable(url: &DatabaseUrl) -> Problem {
    Problem::set_up(format!("cannot reach the control database at {}", url.address()))
        .hint("check that the server is running, and the host and port in [control] `url`")
}

/// What a failed connection means to the person who wrote the URL. No password is ever in a server's answer.
fn refused(error: sqlx::Error, url: &DatabaseUrl) -> Problem {
    if let Some((_, hint)) = handshake::untrusted(&error) {
        return Problem::set_up(format!(
            "cannot open a trusted connection to the control database at {}",
            url.address()
        ))
        .hint(hint)
        .caused_by(cause(error));
    }
    let code = error
        .as_database_error()
        .and_then(|e| e.code())
        .map(|code| code.into_owned());
    let problem = match code.as_deref() {
        Some("28P01" | "28000") => {
            let user = url.user().unwrap_or_else(|| "the default user".into());
            Problem::set_up(format!(
                "the control database at {} rejected the login of `{user}`",
                url.address()
            ))
            .hint(refusal(code.as_deref().unwrap_or_default(), &error))
        }
        Some("3D000") => Problem::set_up(format!(
            "the server at {} has no database `{}`",
            url.address(),
            url.database()
        ))
        .hint(format!(
            "create it (createdb {}), or correct [control] `url`; then run `herder setup`",
            url.database()
        )),
        Some("53300") => Problem::set_up(format!("the server at {} has no free connections", url.address()))
            .hint("wait until connections are free, or raise max_connections"),
        Some(_) => Problem::set_up(format!(
            "the control database at {} lets nobody in",
            url.address()
        ))
        .hint("the server's log says more"),
        None => unreachable(url),
    };
    problem.caused_by(cause(error))
}

/// What to do about it, in terms of the config.
fn refusal(code: &str, error: &sqlx::Error) -> String {
    let message = error.as_database_error().map_or("", |e| e.message());
    let hint = handshake::refused(code, message).unwrap_or("check user and password in the URL");
    hint.replace("the URL", "[control] `url`")
}

/// The bare cause: sqlx adds the line of the server's source code, or that this is about a database.
pub(crate) fn cause(error: sqlx::Error) -> anyhow::Error {
    match error {
        sqlx::Error::Database(error) => anyhow::anyhow!("{}", error.message()),
        sqlx::Error::Io(error) => error.into(),
        error => error.into(),
    }
}

/// The run that a person means.
pub(crate) async fn find_run(pool: &PgPool, name: Option<&str>) -> anyhow::Result<RunId> {
    let list = "`herder runs` lists them";
    // Dashes do not count where ids are compared: nothing but dashes would be a prefix of each.
    let is_id = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_hexdigit())
            && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
    };
    if let Some(name) = name
        && !is_id(name.trim())
    {
        let wrong = format!("`{name}` is not a run: give its id, or a prefix of it");
        return Err(Problem::usage(wrong).hint(list).into());
    }
    match (store::run::find(pool, name).await?, name) {
        (Found::One(run), _) => Ok(run),
        (Found::None, Some(name)) => Err(Problem::usage(format!("no run begins with `{name}`"))
            .hint(list)
            .into()),
        (Found::None, None) => Err(Problem::usage("there is no run yet")
            .hint("`herder upgrade` starts one")
            .into()),
        (Found::Several(runs), _) => {
            let ids: Vec<String> = runs.iter().map(RunId::to_string).collect();
            let name = name.unwrap_or_default();
            Err(
                Problem::usage(format!("`{name}` is ambiguous: it matches {}", ids.join(", ")))
                    .hint("give more digits")
                    .into(),
            )
        }
    }
}

/// A run as people are shown it.
pub(crate) async fn view_run(pool: &PgPool, run: RunId) -> anyhow::Result<RunView> {
    let found = view::runs(pool, Some(run), 1).await?.pop();
    found.with_context(|| format!("run {} is gone from the control database", short(&run)))
}

//! `herder setup`: the control tables.

use anyhow::Context as _;
use herder::store::{
    StoreError,
    setup::{self, SetupState},
};

use super::Setting;
use crate::{args::Setup, control, exit::Exit, output, problem::Problem};

pub(crate) async fn run(setting: &Setting, args: &Setup) -> anyhow::Result<Exit> {
    let config = setting.config()?;
    let pool = control::connect_unchecked(&config.control).await?;
    let before = setup::setup_state(&pool).await?;
    if matches!(before, SetupState::Newer | SetupState::Foreign(_))
        && let Some(problem) = control::unfit(before)
    {
        return Err(problem.into());
    }
    if setup::may_set_up(&pool).await? {
        // Also where all is there: the queue's tables have a history of their own.
        setup::setup(&pool)
            .await
            .context("cannot set up the control database")?;
    } else if before != SetupState::Current || !args.grant.is_empty() {
        return Err(Problem::set_up("this role may not set up the control database")
            .hint(
                "run it as the role that owns the database; that role gives others access to the tables with \
                 `herder setup --grant ROLE`",
            )
            .into());
    }
    for role in &args.grant {
        setup::grant(&pool, role)
            .await
            .map_err(|error| cannot_grant(role, error))?;
    }
    output::say(match before {
        SetupState::Missing => "Created the schemas `herder` and `apalis`",
        SetupState::Outdated => "Updated the schemas `herder` and `apalis`",
        SetupState::Current | SetupState::Newer | SetupState::Foreign(_) => {
            "Nothing to do: the control database is already set up"
        }
    });
    for role in &args.grant {
        output::say(&format!("Granted `{role}` access to both"));
    }
    Ok(Exit::Done)
}

fn cannot_grant(role: &str, error: StoreError) -> anyhow::Error {
    let problem = Problem::set_up(format!("cannot grant `{role}` access to the control tables"));
    match error {
        StoreError::Database(error) => {
            let unknown = error
                .as_database_error()
                .is_some_and(|e| e.code().as_deref() == Some("42704"));
            let problem = problem.caused_by(control::cause(error));
            match unknown {
                true => problem.hint("create the role first: CREATE ROLE … LOGIN PASSWORD …"),
                false => problem,
            }
        }
        other => problem.caused_by(other),
    }
    .into()
}

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
    if before == SetupState::Newer {
        return Err(
            Problem::set_up("the control database was set up by a newer Herder")
                .hint("use that version: this one does not know its tables")
                .into(),
        );
    }
    if setup::may_set_up(&pool).await? {
        // Also where all is there: the queue's tables have a history of their own.
        setup::setup(&pool)
            .await
            .context("cannot set up the control database")?;
    } else if before != SetupState::Current || !args.grant.is_empty() {
        return Err(Problem::set_up("this role may not set up the control database")
            .hint(
                "it is for the role that owns the database; that one lets others use the tables by \
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
        SetupState::Missing => "Made the schemas `herder` and `apalis`",
        SetupState::Outdated => "Brought the schemas `herder` and `apalis` up to date",
        SetupState::Current | SetupState::Newer => "Nothing to do: the control database is set up",
    });
    for role in &args.grant {
        output::say(&format!("Granted `{role}` the use of both"));
    }
    Ok(Exit::Done)
}

fn cannot_grant(role: &str, error: StoreError) -> anyhow::Error {
    let problem = Problem::set_up(format!("cannot grant `{role}` the use of the control tables"));
    match error {
        StoreError::Database(error) => {
            let unknown = error
                .as_database_error()
                .is_some_and(|e| e.code().as_deref() == Some("42704"));
            let problem = problem.caused_by(control::cause(error));
            match unknown {
                true => problem.hint("make the role first: CREATE ROLE … LOGIN PASSWORD …"),
                false => problem,
            }
        }
        other => problem.caused_by(other),
    }
    .into()
}

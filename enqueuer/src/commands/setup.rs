//! `herder setup`: the control tables.

use anyhow::Context as _;
use herder::store::setup::{self, SetupState};

use super::Setting;
use crate::{control, exit::Exit, output, problem::Problem};

pub(crate) async fn run(setting: &Setting) -> anyhow::Result<Exit> {
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
    // Also where all is there: the queue's tables have a history of their own.
    setup::setup(&pool)
        .await
        .context("cannot set up the control database")?;
    output::say(match before {
        SetupState::Missing => "Made the schemas `herder` and `apalis`",
        SetupState::Outdated => "Brought the schemas `herder` and `apalis` up to date",
        SetupState::Current | SetupState::Newer => "Nothing to do: the control database is set up",
    });
    Ok(Exit::Done)
}

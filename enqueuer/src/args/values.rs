//! Values of the command line that a library has no parser for, or one that takes too much.

use std::time::Duration;

use herder::{
    config::{MOST_CONNECTIONS, NO_TIMEOUT, TIMEOUTS},
    domain::wave::Amount,
};

/// The greatest age that anything can be asked for.
const OLDEST: Duration = Duration::from_secs(1000 * 366 * 24 * 60 * 60);

/// What a budget is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetBudget {
    /// So many connections.
    To(i32),
    /// What the config says.
    Config,
}

pub(super) fn set_budget(text: &str) -> Result<SetBudget, String> {
    match text.parse::<i128>() {
        _ if text == "config" => Ok(SetBudget::Config),
        Ok(..1) => Err("must be at least 1; `herder pause` stops a run".into()),
        Ok(n) => match i32::try_from(n) {
            Ok(n) if n.unsigned_abs() <= MOST_CONNECTIONS => Ok(SetBudget::To(n)),
            _ => Err(format!(
                "must be at most {MOST_CONNECTIONS}, the most connections that PostgreSQL can have"
            )),
        },
        Err(_) => Err("expected a number, or `config`".into()),
    }
}

/// A duration that is a limit to the server, too.
pub(super) fn limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if TIMEOUTS.contains(&limit) => Ok(limit),
        Ok(_) => Err(NO_TIMEOUT.into()),
        Err(error) => Err(error.to_string()),
    }
}

/// How long to wait. With no patience at all, no run could be waited for.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0s".into()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// How old a run must be. PostgreSQL's clock begins in 4713 BC.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(age) if age > OLDEST => Err("must be at most 1000 years".into()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// The size of a wave. In waves of nobody, nothing would ever be done.
pub(super) fn wave(text: &str) -> Result<Amount, String> {
    match text.parse::<Amount>()? {
        none if none.is_zero() => {
            Err("must be at least 1; without it, all remaining tenants are one wave".into())
        }
        size => Ok(size),
    }
}

//! What a config must keep to, beyond the types of its values.

use std::time::Duration;

use super::{
    Config, ConfigError, MOST_CONNECTIONS, NO_TIMEOUT, RunnerConfig, TIMEOUTS, WorkerConfig, complaint::wrong,
};
use crate::domain::wave::Amount;

impl Config {
    /// Checks what no type can say.
    ///
    /// # Errors
    /// The first of what is wrong, with its section.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |section: &str, message: &str| Err(wrong(section, message));
        let WorkerConfig {
            concurrency,
            heartbeat,
            lease,
            poll,
            ..
        } = self.worker;
        if concurrency == 0 {
            return wrong("worker", "`concurrency` must be at least 1");
        }
        let least = Duration::from_millis(1);
        if heartbeat < least || poll < least || lease < heartbeat * 3 {
            return wrong(
                "worker",
                "`lease` must be at least three times `heartbeat`, and `heartbeat` and `poll` at least 1ms",
            );
        }
        if self.limits.max_attempts < 1 || self.limits.max_starts < 1 {
            return wrong("limits", "`max_attempts` and `max_starts` must be at least 1");
        }
        for (key, limit) in [
            ("lock_timeout", self.limits.lock_timeout),
            ("statement_timeout", self.limits.statement_timeout),
        ] {
            if !TIMEOUTS.contains(&limit) {
                return wrong("limits", &format!("`{key}` must be {NO_TIMEOUT}"));
            }
        }
        if let RunnerConfig::Alembic(alembic) = &self.runner
            && alembic.x.keys().any(|name| name == "url" || name == "schema")
        {
            return wrong(
                "runner",
                "`x` must not hold `url` or `schema`: they are the tenant's",
            );
        }
        let is_zero = |amount: Option<Amount>| amount.is_some_and(Amount::is_zero);
        if let Some((name, _)) = self.servers.iter().find(|(_, server)| is_zero(server.budget)) {
            return wrong(&format!("servers.{name}"), "`budget` must be at least 1");
        }
        let too_many = |amount| matches!(amount, Some(Amount::Count(n)) if n > MOST_CONNECTIONS);
        if let Some((name, _)) = self.servers.iter().find(|(_, server)| too_many(server.budget)) {
            return wrong(
                &format!("servers.{name}"),
                &format!(
                    "`budget` must be at most {MOST_CONNECTIONS}, the most connections that PostgreSQL can have"
                ),
            );
        }
        if is_zero(self.rollout.wave) {
            return wrong(
                "rollout",
                "`wave` must be at least 1; without it, all remaining tenants are one wave",
            );
        }
        if let Some(problem) = self.notify.problem() {
            return wrong("notify", problem);
        }
        if let RunnerConfig::Command(c) = &self.runner
            && c.command.is_empty()
        {
            return wrong("runner", "`command` is empty: give a program and its arguments");
        }
        Ok(())
    }
}

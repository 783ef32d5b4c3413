//! What of the config makes no sense is said when the runner is made, before any tenant is touched.

use std::path::{Path, PathBuf};

use super::template::{Placeholder, Template};
use crate::{config::CommandConfig, tenant_error::TenantError};

/// What is not known where only the ledger is read.
pub(super) const UNKNOWN_TO_CURRENT: [Placeholder; 3] =
    [Placeholder::From, Placeholder::To, Placeholder::Direction];

/// Reads a command of the config.
pub(super) fn command(
    key: &str,
    words: &[String],
    unknown: &[Placeholder],
) -> Result<Vec<Template>, TenantError> {
    if words.first().is_none_or(|program| program.trim().is_empty()) {
        return Err(setup(
            format!("`{key}` is empty"),
            "it is the program and its arguments, e.g. [\"sh\", \"migrate.sh\"]",
        ));
    }
    let templates = words.iter().map(|word| {
        let template = Template::parse(word).map_err(|e| placeholder_error(key, e))?;
        if let Some(p) = template.placeholders().find(|p| p.is_secret()) {
            return Err(setup(
                format!("`{key}` has {p} in its arguments, which anybody on the machine can read"),
                "the program gets it in the environment, as DATABASE_URL and PGPASSWORD; or pass it by `env` or `stdin`",
            ));
        }
        if let Some(p) = template.placeholders().find(|p| unknown.contains(p)) {
            return Err(setup(
                format!("`{key}` has {p} in it, which is not known when it runs"),
                "it is about a tenant: {tenant}, {schema}, {database}, {server}, {host}, {port} and {user} are known, and DATABASE_URL",
            ));
        }
        Ok(template)
    });
    templates.collect()
}

pub(super) fn placeholder_error(key: &str, error: String) -> TenantError {
    setup(
        format!("`{key}`: {error}"),
        "a word in braces is a placeholder; {{word}} stands for the word in braces itself",
    )
}

pub(super) fn setup(message: String, hint: &str) -> TenantError {
    TenantError::Setup {
        message: format!("[runner] {message}"),
        hint: hint.into(),
    }
}

/// A relative path with a folder in it begins in `directory`; a bare name is looked up on PATH.
pub(super) fn program(name: &str, directory: &Path) -> PathBuf {
    match name.contains('/') {
        true => directory.join(name),
        false => name.into(),
    }
}

/// A program may print its own environment.
pub(super) fn secrets(config: &CommandConfig) -> Vec<String> {
    let telling = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["PASS", "SECRET", "TOKEN", "KEY", "URL", "DSN"]
            .iter()
            .any(|word| name.contains(word))
    };
    let env = config.env.iter().filter(|(name, _)| telling(name));
    env.map(|(_, value)| value.clone()).collect()
}

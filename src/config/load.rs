//! Reading `herder.toml`: `${…}` is filled in value by value, then each section is checked on its own, so that every
//! complaint names its section.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{
    Config, ConfigError, RolloutConfig, RunnerConfig, ServerConfig, TenantsConfig,
    complaint::{complaint, wrong},
    expand::expand_all,
};
use crate::{nearest::did_you_mean, secret::shown};

const SECTIONS: [&str; 8] = [
    "control", "tenants", "servers", "runner", "limits", "rollout", "worker", "notify",
];

impl Config {
    /// Reads and checks a config.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = directory
            .canonicalize()
            .map_err(|source| ConfigError::Unreadable {
                path: directory.to_owned(),
                source,
            })?;
        Self::parse(&text, path, &directory, &|name| std::env::var(name).ok())
    }

    /// Loads a config from its text: `env` gives the environment, and relative paths start from `directory`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(
        text: &str,
        path: &Path,
        directory: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: match e.span() {
                Some(span) => {
                    format!(
                        "{} (line {})",
                        e.message(),
                        text[..span.start.min(text.len())].lines().count().max(1)
                    )
                }
                None => e.message().to_owned(),
            },
        })?;
        let private_variables = expand_all(&mut table, directory, env)?;
        if let Some(unknown) = table.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
            let message = match did_you_mean(unknown, SECTIONS.into_iter()) {
                none if none.is_empty() => format!("unknown section; there are {}", SECTIONS.join(", ")),
                nearest => format!("unknown section{nearest}"),
            };
            return Err(wrong(unknown, message));
        }
        let servers: BTreeMap<String, Value> = section(&mut table, "servers", true)?;
        let mut config = Self {
            path: path.to_owned(),
            control: section(&mut table, "control", false)?,
            tenants: tagged(&mut table, "tenants", "source")?,
            servers: servers
                .into_iter()
                .map(|(name, value)| {
                    let section = format!("servers.{name}");
                    Ok((name, decode::<ServerConfig>(&section, value)?))
                })
                .collect::<Result<_, ConfigError>>()?,
            runner: tagged(&mut table, "runner", "kind")?,
            limits: section(&mut table, "limits", true)?,
            rollout: section::<RolloutConfig>(&mut table, "rollout", true)?,
            worker: section(&mut table, "worker", true)?,
            notify: section(&mut table, "notify", true)?,
        };
        match &mut config.runner {
            RunnerConfig::Alembic(c) => c.private_variables = private_variables,
            RunnerConfig::Command(c) => c.private_variables = private_variables,
            // It starts nothing.
            RunnerConfig::Sql(_) => {}
        }
        config.absolute_paths(directory);
        config.check()?;
        Ok(config)
    }

    fn absolute_paths(&mut self, directory: &Path) {
        let absolute = |path: &mut PathBuf| *path = directory.join(&*path);
        match &mut self.runner {
            RunnerConfig::Alembic(c) => {
                absolute(&mut c.config);
                // A name is looked up on PATH; a path with a folder in it is a path.
                if c.python.contains('/') {
                    c.python = directory.join(&c.python).to_string_lossy().into_owned();
                }
            }
            RunnerConfig::Sql(c) => absolute(&mut c.directory),
            RunnerConfig::Command(c) => absolute(c.directory.get_or_insert_with(PathBuf::new)),
        }
        if let TenantsConfig::File(c) = &mut self.tenants {
            absolute(&mut c.path);
        }
    }
}

fn section<T: DeserializeOwned>(table: &mut Table, name: &str, optional: bool) -> Result<T, ConfigError> {
    match table.remove(name) {
        Some(value) => decode(name, value),
        None if optional => decode(name, Value::Table(Table::new())),
        None => Err(wrong(
            name,
            "the section is missing; `herder init` creates a config with all sections",
        )),
    }
}

fn decode<T: DeserializeOwned>(section: &str, value: Value) -> Result<T, ConfigError> {
    value.try_into().map_err(|error| complaint(section, None, &error))
}

/// One of several kinds of a section, which the value of `tag` names. `kind = "sql"` beside other keys is read as a section
/// `sql` with these keys: of what serde itself takes for tagged, it knows no keys.
fn tagged<T: DeserializeOwned>(table: &mut Table, name: &str, tag: &'static str) -> Result<T, ConfigError> {
    let mut keys: Table = section(table, name, false)?;
    let kind = match keys.remove(tag) {
        Some(Value::String(kind)) => shown(&kind),
        Some(_) => return Err(wrong(name, format!("`{tag}`: expected a string"))),
        None => return Err(wrong(name, format!("missing field `{tag}`"))),
    };
    let whole = Table::from_iter([(kind.clone(), Value::Table(keys))]);
    Value::Table(whole)
        .try_into()
        .map_err(|error| complaint(name, Some((tag, &kind)), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [control]
        url = "${HERDER_CONTROL_URL}"
        [tenants]
        source = "file"
        path = "tenants.csv"
        [servers.main]
        url = "postgresql://u:${file:pw}@h/db"
        budget = "25%"
        [runner]
        kind = "sql"
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("a folder");
        std::fs::write(directory.path().join("pw"), "pa$$\n").expect("a file");
        Config::parse(text, Path::new("herder.toml"), directory.path(), &|name| {
            (name == "HERDER_CONTROL_URL").then(|| "postgresql://c/d".into())
        })
    }

    fn complaint(text: &str) -> String {
        parse(text).expect_err("it is wrong").to_string()
    }

    #[test]
    fn variables_and_files_are_filled_in() {
        let config = parse(MINIMAL).expect("it is right");
        assert_eq!(config.control.url.expose(), "postgresql://c/d");
        assert_eq!(config.servers["main"].url.expose(), "postgresql://u:pa$$@h/db");
        assert_eq!(config.limits.max_attempts, 5);
        assert!(
            matches!(config.runner, RunnerConfig::Sql(SqlConfig { directory, .. }) if directory.is_absolute())
        );
    }

    use super::super::SqlConfig;

    #[test]
    fn the_template_is_a_valid_config() {
        let config = Config::parse(
            super::super::TEMPLATE,
            Path::new("herder.toml"),
            Path::new("/"),
            &|_| Some("postgresql://h/d".into()),
        );
        config.expect("the template is valid");
    }

    #[test]
    fn what_stands_in_the_wrong_place_is_not_repeated() {
        for (text, words) in [
            (
                "control = 'postgresql://u:hunter2@h/d'",
                "[control] must be a section",
            ),
            (
                "[control]\nurl = ['postgresql://u:hunter2@h/d']",
                "[control] `url`: invalid type: sequence",
            ),
            (
                "[control]\nurl = 'postgresql://h/d'\n[limits]\nmax_attempts = 'postgresql://u:hunter2@h/d'",
                "[limits] `max_attempts`: expected a whole number, found a string",
            ),
            (
                "tenants = 'postgresql://u:hunter2@h/d'\n[control]\nurl = 'postgresql://h/d'",
                "[tenants] must be a section",
            ),
            (
                "[control]\nurl = 'postgresql://h/d'\n[tenants]\nsource = 'postgresql://u:hunter2@h/d'",
                "[tenants] `source`: unknown variant",
            ),
        ] {
            let rest = if text.contains("tenants") {
                "[servers.main]"
            } else {
                "[tenants]"
            };
            let complaint = complaint(&format!(
                "{text}\n{}",
                &MINIMAL[MINIMAL.find(rest).expect("it")..]
            ));
            assert!(
                complaint.starts_with(words) && !complaint.contains("hunter2"),
                "{complaint}"
            );
        }
    }

    #[test]
    fn only_what_migrations_need_is_handed_down() {
        let text = r#"
            control.url = "${CONTROL}"
            [tenants]
            source = "sql"
            url = "${CATALOG}?application_name=${SHARED}"
            query = "select 1"
            [servers.main]
            url = "${SHARED}"
            [runner]
            kind = "alembic"
        "#;
        let env = |_: &str| Some("postgresql://h/d".to_owned());
        let config =
            Config::parse(text, Path::new("herder.toml"), Path::new("/"), &env).expect("it is right");
        let RunnerConfig::Alembic(alembic) = config.runner else {
            panic!("it is Alembic");
        };
        assert_eq!(alembic.private_variables, ["CATALOG", "CONTROL"]);
    }

    #[test]
    fn a_webhook_is_checked_and_never_shown() {
        let notify = |keys: &str| parse(&format!("{MINIMAL}\n[notify]\n{keys}")).map(|config| config.notify);
        let complaint = |keys: &str| notify(keys).expect_err("it is wrong").to_string();
        let config = notify("webhook = \"https://h/T0ken\"\nevents = [\"halt\"]").expect("it is right");
        assert_eq!(config.webhook().map(|url| url.expose()), Some("https://h/T0ken"));
        assert!(!format!("{config:?}").contains("T0ken"));
        assert!(notify("webhook = \"\"").expect("none").webhook().is_none());
        for keys in [
            "webhook = \"h/T0ken\"",
            "webhook = \"ftp://h/T0ken\"",
            "webhook = [\"T0ken\"]",
        ] {
            assert!(!complaint(keys).contains("T0ken"), "{}", complaint(keys));
        }
        assert_eq!(
            complaint("events = [\"finished\"]"),
            "[notify] `events`: unknown variant `finished`; did you mean `finish`?"
        );
        assert_eq!(
            complaint("timeout = \"0s\""),
            "[notify] `timeout` must be more than 0s, and at most 1min"
        );
    }

    #[test]
    fn complaints_name_section_key_and_nearest() {
        assert_eq!(
            complaint(&MINIMAL.replace("kind = \"sql\"", "kind = \"sql\"\ndirectry = \"x\"")),
            "[runner] unknown field `directry`; did you mean `directory`?"
        );
        assert_eq!(
            complaint(&MINIMAL.replace("kind = \"sql\"", "kind = \"sqll\"")),
            "[runner] `kind`: unknown variant `sqll`; did you mean `sql`?"
        );
        assert_eq!(
            complaint(&format!("{MINIMAL}\n[limit]")),
            "[limit] unknown section; did you mean `limits`?"
        );
        assert_eq!(
            complaint(&MINIMAL.replace("${HERDER", "${NOPE")),
            "`control.url` needs the environment variable NOPE_CONTROL_URL, which is not set"
        );
        assert_eq!(
            complaint(&format!("{MINIMAL}\n[limits]\nbackoff = \"soon\"")),
            "[limits] `backoff`: `soon` is not a duration like \"3s\": expected number at 0"
        );
        assert_eq!(
            complaint(&format!(
                "{MINIMAL}\n[worker]\nheartbeat = \"7000000000000000000s\""
            )),
            "[worker] `heartbeat`: `7000000000000000000s` is longer than a year"
        );
        for (from, to, said) in [
            (
                "source = \"file\"",
                "source = \"nope\"",
                "[tenants] `source`: unknown variant `nope`, expected one of `sql`, `file`, `schemas`, `databases`, `fastapi-tenancy`",
            ),
            ("source = \"file\"", "", "[tenants] missing field `source`"),
            ("path = \"tenants.csv\"", "", "[tenants] missing field `path`"),
            (
                "path = \"tenants.csv\"",
                "path = 3",
                "[tenants] `path`: invalid type: integer `3`, expected path string",
            ),
            (
                "kind = \"sql\"",
                "kind = \"command\"\ncommand = \"x\"",
                "[runner] `command`: expected a sequence, found a string",
            ),
            (
                "kind = \"sql\"",
                "kind = \"sql\"\n[limits]\nlock_timeout = 3",
                "[limits] `lock_timeout`: invalid type: integer `3`, expected a string",
            ),
            (
                "kind = \"sql\"",
                "kind = \"sql\"\n[worker]\nconcurrency = -1",
                "[worker] `concurrency`: invalid value: integer `-1`, expected a whole number",
            ),
            (
                "kind = \"sql\"",
                "kind = \"sql\"\n[zebra]",
                "[zebra] unknown section; there are control, tenants, servers, runner, limits, rollout, worker, notify",
            ),
            (
                "\"25%\"",
                "99999999999",
                "[servers.main] `budget`: `99999999999` is not between 0 and 4294967295",
            ),
            (
                "\"25%\"",
                "\"101%\"",
                "[servers.main] `budget`: `101%` is not between 0% and 100%",
            ),
            (
                "\"25%\"",
                "true",
                "[servers.main] `budget`: expected a number or a percentage like \"50%\"",
            ),
        ] {
            assert_eq!(complaint(&MINIMAL.replace(from, to)), said);
        }
        for (key, value) in [
            ("lock_timeout", "500us"),
            ("lock_timeout", "0s"),
            ("statement_timeout", "1ns"),
            ("statement_timeout", "30days"),
        ] {
            assert_eq!(
                complaint(&format!("{MINIMAL}\n[limits]\n{key} = \"{value}\"")),
                format!(
                    "[limits] `{key}` must be between 1ms and 2147483647ms (24 days), the range that PostgreSQL can enforce"
                )
            );
        }
        for limit in ["1ms", "24days"] {
            parse(&format!("{MINIMAL}\n[limits]\nstatement_timeout = \"{limit}\"")).expect("it is right");
        }
        for budget in ["0", "\"0\"", "\"0%\""] {
            assert_eq!(
                complaint(&MINIMAL.replace("\"25%\"", budget)),
                "[servers.main] `budget` must be at least 1"
            );
        }
        assert_eq!(
            complaint(&MINIMAL.replace("\"25%\"", "262144")),
            "[servers.main] `budget` must be at most 262143, the most connections that PostgreSQL can have"
        );
        assert_eq!(
            complaint(&format!("{MINIMAL}\n[rollout]\nwave = 0")),
            "[rollout] `wave` must be at least 1; without it, all remaining tenants are one wave"
        );
        assert_eq!(
            complaint(&format!("{MINIMAL}\n[worker]\nlease = \"1s\"")),
            "[worker] `lease` must be at least three times `heartbeat`, and `heartbeat` and `poll` at least 1ms"
        );
        assert_eq!(
            complaint("[control"),
            "herder.toml is not valid TOML: unclosed table, expected `]` (line 1)"
        );
    }
}

//! What is wrong with a config, in words that name the section and the key, and repeat no value: a password may stand there.

use std::path::PathBuf;

use crate::nearest::did_you_mean;

/// What is wrong with a config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config {}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{} is not valid TOML: {message}", .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What the parser says, without the source line: a password may stand there.
        message: String,
    },
    /// A variable or a file that it names is not there.
    #[error("`{key}` needs {what}")]
    Missing {
        /// The key whose value names it.
        key: String,
        /// What is not there.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A section is wrong.
    #[error("[{section}] {message}")]
    Section {
        /// Its name.
        section: String,
        /// What is wrong, with the nearest known key where a key is unknown.
        message: String,
    },
}

pub(super) fn wrong(section: &str, message: impl Into<String>) -> ConfigError {
    ConfigError::Section {
        section: section.into(),
        message: message.into(),
    }
}

/// What serde says of a section, with the key that it is about.
pub(super) fn complaint(section: &str, kind: Option<(&str, &str)>, error: &toml::de::Error) -> ConfigError {
    let message = without_value(&with_nearest(error.message().trim()));
    // The only way to them: `in `a.b`` is its last line, where a value is wrong.
    let text = error.to_string();
    let path = text
        .trim_end()
        .rsplit_once("\nin `")
        .map(|(_, keys)| keys.trim_end_matches('`'));
    let key = match (path, kind) {
        (None, Some((tag, _))) if message.starts_with("unknown variant") => Some(tag),
        (Some(path), Some((_, kind))) => path
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('.'))
            .or(Some(path)),
        (path, _) => path,
    };
    match key {
        Some(key) => wrong(section, format!("`{key}`: {message}")),
        None => wrong(section, message),
    }
}

/// A URL that stands in the wrong place must not be repeated: serde would, in `invalid type: string "…", expected …`.
fn without_value(message: &str) -> String {
    // In words of TOML, not of Rust.
    if message.starts_with("invalid type: ")
        && let Some((_, "struct ControlConfig" | "struct ServerConfig" | "a map")) =
            message.rsplit_once(", expected ")
    {
        return "must be a section with keys, as in the config that `herder init` creates".to_owned();
    }
    for kind in ["type", "value"] {
        let begin = format!("invalid {kind}: string \"");
        if let Some(rest) = message.strip_prefix(&begin)
            && let Some((_, expected)) = rest.rsplit_once("\", expected ")
        {
            return format!("expected {}, found a string", in_words(expected));
        }
    }
    match message.rsplit_once("expected ") {
        Some((before, expected)) => format!("{before}expected {}", in_words(expected)),
        None => message.to_owned(),
    }
}

/// A type of Rust's as whoever writes a config knows it.
fn in_words(expected: &str) -> &str {
    match expected {
        "i32" | "u32" | "usize" => "a whole number",
        other => other,
    }
}

/// Puts the nearest of the names that serde lists in ``unknown field `x`, expected one of `a`, `b` `` in the place of the list.
fn with_nearest(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.split_once(", expected"), names.split_first()) {
        (Some((unknown, _)), Some((name, known))) if message.starts_with("unknown ") => {
            match did_you_mean(name, known.iter().copied()) {
                none if none.is_empty() => message.to_owned(),
                nearest => format!("{unknown}{nearest}"),
            }
        }
        _ => message.to_owned(),
    }
}

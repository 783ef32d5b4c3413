//! `${NAME}` and `${file:path}` in a config's values.

use std::{cell::RefCell, collections::BTreeSet, path::Path};

use toml::{Table, Value};

use super::ConfigError;

/// Fills in all of a config, and says which variables hold what only Herder needs: those of the control database and the
/// tenant list, unless a server's URL or the runner is made of them, too.
pub(super) fn expand_all(
    table: &mut Table,
    directory: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ConfigError> {
    let (private, shared) = (RefCell::new(BTreeSet::new()), RefCell::new(BTreeSet::new()));
    for (key, value) in table {
        let names = match key.as_str() {
            "control" | "tenants" | "notify" => &private,
            _ => &shared,
        };
        let env = |name: &str| {
            names.borrow_mut().insert(name.to_owned());
            env(name)
        };
        expand(key, value, directory, &env)?;
    }
    Ok(private
        .into_inner()
        .difference(&shared.into_inner())
        .cloned()
        .collect())
}

/// Fills in `${NAME}` and `${file:/path}` in every text of a value. `$${` stands for `${`.
fn expand(
    key: &str,
    value: &mut Value,
    directory: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    match value {
        Value::String(text) if text.contains("${") => *text = expand_text(key, text, directory, env)?,
        Value::Array(items) => {
            for item in items {
                expand(key, item, directory, env)?;
            }
        }
        Value::Table(table) => {
            for (name, item) in table.iter_mut() {
                expand(&format!("{key}.{name}"), item, directory, env)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand_text(
    key: &str,
    text: &str,
    directory: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ConfigError> {
    let missing = |what: String, hint| ConfigError::Missing {
        key: key.into(),
        what,
        hint,
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        if let Some(kept) = before.strip_suffix('$') {
            out.push_str(kept);
            out.push_str("${");
            rest = after;
            continue;
        }
        let end = after
            .find('}')
            .ok_or_else(|| missing("a closing `}` after `${`".into(), "write `$${` for `${` itself"))?;
        out.push_str(before);
        let name = &after[..end];
        if name.is_empty() {
            let what = "the name of an environment variable between `${` and `}`".into();
            return Err(missing(what, "write `$${}` for `${}` itself"));
        }
        match name.strip_prefix("file:") {
            Some(file) => {
                let content = std::fs::read_to_string(directory.join(file)).map_err(|e| {
                    let what = format!("the file {file}, which cannot be read: {e}");
                    missing(
                        what,
                        "correct its path, which is relative to the config, or make it readable",
                    )
                })?;
                out.push_str(content.trim_end_matches(['\r', '\n']));
            }
            None => {
                let found = env(name);
                out.push_str(&found.ok_or_else(|| {
                    let what = format!("the environment variable {name}, which is not set");
                    missing(what, "set it, or write the value into the config")
                })?);
            }
        }
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_without_a_name_name_no_variable() {
        let expanded = |text: &str| expand_text("a.url", text, Path::new("."), &|_| None);
        let error = expanded("x${}").expect_err("it has no name").to_string();
        assert!(
            error.ends_with("needs the name of an environment variable between `${` and `}`"),
            "{error}"
        );
        assert_eq!(expanded("x$${}").expect("a text"), "x${}");
    }
}

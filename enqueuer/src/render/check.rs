//! What `herder check` looked at.

use super::style::{DIM, ERROR, GOOD, HINT, WARNING};
use crate::commands::check::{Level, Report};

/// One line per thing, with what to do about it below.
pub(crate) fn render(report: &Report) -> String {
    let names = report.checks.iter().map(|check| check.name.chars().count());
    let width = names.max().unwrap_or_default();
    let mut text = String::new();
    for check in &report.checks {
        let (style, word) = match check.result {
            Level::Ok => (GOOD, "ok"),
            Level::Warn => (WARNING, "warn"),
            Level::Problem => (ERROR, "problem"),
        };
        text += &format!(
            "{style}{word:>8}{style:#}  {:width$}  {}\n",
            check.name, check.text
        );
        if let Some(hint) = &check.hint {
            let style = if check.result == Level::Ok { DIM } else { HINT };
            text += &format!("{:1$}{style}hint:{style:#} {hint}\n", "", width + 12);
        }
    }
    // At the end, where it can be copied as it stands.
    for sql in report.checks.iter().filter_map(|check| check.sql.as_deref()) {
        text += &format!("\n{sql}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::check::Finding;

    #[test]
    fn each_thing_has_its_line() {
        let finding = |name: &str, result, text: &str, hint: Option<&str>| Finding {
            name: name.into(),
            result,
            text: text.into(),
            hint: hint.map(Into::into),
            sql: (name == "server eu").then(|| "-- for the DBA\nCREATE ROLE \"migrator\";\n".into()),
        };
        let checks = vec![
            finding("config", Level::Ok, "herder.toml", None),
            finding(
                "control database",
                Level::Problem,
                "it is not set up",
                Some("run `herder setup`"),
            ),
            finding("server eu", Level::Warn, "no tenant is on this server", None),
        ];
        let text = render(&Report { ok: false, checks });
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}

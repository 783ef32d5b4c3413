//! What to type next: commands in backticks, each of which can be typed as it stands.

use std::sync::OnceLock;

/// What such a command ends with, where this one was given a config.
static CONFIG_ARGS: OnceLock<String> = OnceLock::new();

/// Takes note of it, once: ` --config x.toml`, or nothing.
pub(crate) fn remember(config_args: String) {
    let _ = CONFIG_ARGS.set(config_args);
}

/// A text whose commands use the config that this one uses.
pub(crate) fn complete(text: &str) -> String {
    complete_with(text, CONFIG_ARGS.get().map_or("", String::as_str))
}

/// The same with another config, unless the text has it already.
pub(crate) fn complete_with(text: &str, config_args: &str) -> String {
    if text.contains(config_args) {
        return text.to_owned();
    }
    let parts = text.split('`').enumerate().map(|(n, part)| match part {
        command if n % 2 == 1 && command.starts_with("herder ") => format!("{command}{config_args}"),
        text => text.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_type_next_is_complete() {
        let config_args = " --config 'my fleet.toml'";
        assert_eq!(
            complete_with(
                "--queue waits; `herder cancel 7f3a` ends it; set `budget`",
                config_args
            ),
            format!("--queue waits; `herder cancel 7f3a{config_args}` ends it; set `budget`")
        );
        let already = format!("`herder runs{config_args}` lists them");
        assert_eq!(complete_with(&already, config_args), already);
        assert_eq!(complete("`herder runs` lists them"), "`herder runs` lists them");
    }
}

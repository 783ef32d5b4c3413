//! Texts of the config with `{placeholders}` in them.

use std::{collections::BTreeMap, fmt};

use crate::nearest::did_you_mean;

/// What may stand in braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Placeholder {
    Tenant,
    Schema,
    Database,
    Server,
    Host,
    Port,
    User,
    From,
    To,
    Direction,
    Url,
    Password,
}

impl Placeholder {
    const ALL: [Self; 12] = [
        Self::Tenant,
        Self::Schema,
        Self::Database,
        Self::Server,
        Self::Host,
        Self::Port,
        Self::User,
        Self::From,
        Self::To,
        Self::Direction,
        Self::Url,
        Self::Password,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Server => "server",
            Self::Host => "host",
            Self::Port => "port",
            Self::User => "user",
            Self::From => "from",
            Self::To => "to",
            Self::Direction => "direction",
            Self::Url => "url",
            Self::Password => "password",
        }
    }

    /// Whether anybody who sees it could connect.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::Url | Self::Password)
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.as_str())
    }
}

/// What the placeholders stand for. One that is absent is not known here.
pub(super) type Values = BTreeMap<Placeholder, String>;

/// A text, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Value(Placeholder),
}

impl Template {
    /// `{word}` is a placeholder, `{{word}}` stands for `{word}`, and all other braces for themselves: JSON and shell
    /// need no escapes.
    ///
    /// # Errors
    /// A word that is no placeholder, with the nearest one.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(open) = rest.find('{') {
            plain.push_str(&rest[..open]);
            rest = &rest[open..];
            if let Some(name) = rest.strip_prefix("{{").and_then(word)
                && rest[name.len() + 3..].starts_with('}')
            {
                plain.push_str(&rest[1..name.len() + 3]);
                rest = &rest[name.len() + 4..];
            } else if let Some(name) = word(&rest[1..]) {
                let found = Placeholder::ALL.into_iter().find(|p| p.as_str() == name);
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(Part::Value(found.ok_or_else(|| unknown(name))?));
                rest = &rest[name.len() + 2..];
            } else {
                plain.push('{');
                rest = &rest[1..];
            }
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    pub(super) fn placeholders(&self) -> impl Iterator<Item = Placeholder> + '_ {
        self.0.iter().filter_map(|part| match part {
            Part::Value(p) => Some(*p),
            Part::Text(_) => None,
        })
    }

    /// The text with values in it. None where one of them is not known.
    pub(super) fn fill(&self, values: &Values) -> Option<String> {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Value(p) => values.get(p).map(String::as_str),
        });
        parts.collect()
    }
}

/// The word that ends at the next closing brace.
fn word(text: &str) -> Option<&str> {
    let name = &text[..text.find('}')?];
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    plain.then_some(name)
}

fn unknown(name: &str) -> String {
    let known = Placeholder::ALL.into_iter().map(Placeholder::as_str);
    format!("unknown placeholder `{{{name}}}`{}", did_you_mean(name, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let values = Values::from([
            (Placeholder::Tenant, "acme".into()),
            (Placeholder::To, "{to}".into()),
        ]);
        let template = Template::parse(text).expect("a template");
        template.fill(&values).expect("all are known")
    }

    #[test]
    fn only_words_in_braces_are_placeholders() {
        assert_eq!(filled("-t {tenant}={to}"), "-t acme={to}");
        assert_eq!(
            filled(r#"{"a": {"b": "{tenant}"}} ${HOME} ${1:-x} {}"#),
            r#"{"a": {"b": "acme"}} ${HOME} ${1:-x} {}"#
        );
        assert_eq!(filled("{{tenant}} {{{tenant}}} {{x"), "{tenant} {{tenant}} {{x");
        assert_eq!(filled("ü{tenant}ü"), "üacmeü");
        assert!(
            Template::parse("{host}")
                .expect("a template")
                .fill(&Values::new())
                .is_none()
        );
    }

    #[test]
    fn an_unknown_placeholder_names_the_nearest() {
        assert_eq!(
            Template::parse("{tennant}").expect_err("it is unknown"),
            "unknown placeholder `{tennant}`; did you mean `tenant`?"
        );
    }
}

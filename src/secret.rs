//! A value that must not be seen: URLs with passwords, above all.

use std::fmt;

/// A string that prints as `[secret]`. Reading it takes a word that a reviewer can search for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value read from the environment, a file or a tenant source.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Self)
    }
}

/// Whether a text is a URL with a password in it. Where a name belongs, it is there by mistake, and must not be repeated.
pub(crate) fn is_secret_url(text: &str) -> bool {
    let authority = text
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next());
    let user = authority.and_then(|authority| authority.rsplit_once('@'));
    user.is_some_and(|(user, _)| user.contains(':'))
}

/// A name for a message, as it was written, or without what must not be repeated.
pub(crate) fn shown(name: &str) -> String {
    match is_secret_url(name) {
        true => "[secret]".to_owned(),
        false => name.escape_debug().to_string(),
    }
}

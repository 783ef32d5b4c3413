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

/// A text with `mark` in the place of a secret, however that is quoted there: as it is, or with backslashes before some of
/// its characters, as shells, JSON and most languages write what is odd, JSON in JSON too.
pub(crate) fn take_out(text: &str, secret: &str, mark: &str) -> String {
    if secret.is_empty() {
        return text.to_owned();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        let behind = secret.chars().try_fold(rest, behind);
        let (said, left) = match behind {
            Some(left) => (mark, left),
            None => rest.split_at(c.len_utf8()),
        };
        out.push_str(said);
        rest = left;
    }
    out
}

/// What stands behind a character of a secret, if the text begins with it.
fn behind(text: &str, c: char) -> Option<&str> {
    // A quote inside of quotes, as shells have it: end, a quote by other means, begin.
    let in_quotes = ["'\\''", "'\"'\"'"]
        .into_iter()
        .find(|quote| c == '\'' && text.starts_with(quote));
    if let Some(quote) = in_quotes {
        return text.get(quote.len()..);
    }
    if let Some(rest) = text.strip_prefix(c) {
        return Some(rest);
    }
    let bare = text.strip_prefix('\\')?.trim_start_matches('\\');
    bare.strip_prefix(c).or_else(|| bare.get(by_number(bare, c)?..))
}

/// How long a character's number is at the beginning of a text that had a backslash before it.
fn by_number(text: &str, c: char) -> Option<usize> {
    let begins = |number: &String| {
        let there = text.get(..number.len());
        there.is_some_and(|there| there.eq_ignore_ascii_case(number))
    };
    let units: Vec<String> = c
        .encode_utf16(&mut [0; 2])
        .iter()
        .map(|unit| format!("u{unit:04x}"))
        .collect();
    let octal: Vec<String> = c.to_string().bytes().map(|byte| format!("{byte:o}")).collect();
    let code = u32::from(c);
    [
        units.join("\\"),
        octal.join("\\"),
        format!("x{code:02x}"),
        format!("U{code:08x}"),
    ]
    .iter()
    .find(|number| begins(number))
    .map(String::len)
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

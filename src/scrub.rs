//! Takes secrets out of what programs have said: passwords, above all.
//!
//! There is no list of the notations that a password may be in: at each place of a text, each character of a secret may be
//! spelled in any of the ways that `spelling` knows. So a mixture is found too, as that of a library that escapes some
//! characters and leaves others.

mod spelling;

use std::ops::Range;

use serde_json::Value;

use self::spelling::{first_bytes, spelled};
use crate::{database_url::decode, domain::failure::JobError};

/// What stands in the place of a secret.
const MARK: &str = "***";

/// Knows some secrets, and finds them however they are spelled.
#[derive(Clone)]
pub(crate) struct Scrubber {
    secrets: Vec<String>,
    /// Whether a secret may begin with this byte. Most bytes of a text are over with that.
    begins: [bool; 256],
}

impl Default for Scrubber {
    fn default() -> Self {
        Self::new([])
    }
}

impl Scrubber {
    /// A scrubber that knows these secrets.
    pub(crate) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut secrets: Vec<String> = secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
        secrets.sort_unstable();
        secrets.dedup();
        let mut begins = [false; 256];
        for first in secrets.iter().filter_map(|secret| secret.chars().next()) {
            for byte in first_bytes(first) {
                begins[usize::from(byte)] = true;
            }
        }
        Self { secrets, begins }
    }

    /// A scrubber that knows the passwords of this URL.
    pub(crate) fn of_url(url: &str) -> Self {
        Self::new(passwords(url))
    }

    /// A text without the secrets, and without the password of any other URL in it.
    pub(crate) fn clean(&self, text: &str) -> String {
        clean_parameters(&clean_urls(&self.take_out(text)))
    }

    /// Cleans what is recorded of a failure: a migration may say anything, and the server repeats it.
    pub(crate) fn clean_error(&self, error: &mut JobError) {
        error.message = self.clean(&error.message);
        for text in [&mut error.statement, &mut error.hint].into_iter().flatten() {
            *text = self.clean(text);
        }
    }

    /// Cleans all texts of a JSON value.
    pub(crate) fn clean_json(&self, value: &mut Value) {
        match value {
            // Postgres stores no NUL, and these texts go into a table.
            Value::String(text) => *text = self.clean(text).replace('\0', ""),
            Value::Array(items) => items.iter_mut().for_each(|item| self.clean_json(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.clean_json(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn take_out(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let (mut copied, mut at) = (0, 0);
        while let Some(byte) = text.as_bytes().get(at) {
            // Only the first byte of a character is one that a secret begins with: here one may cut.
            let found = self.begins[usize::from(*byte)]
                .then(|| self.length(&text[at..]))
                .flatten();
            if let Some(length) = found {
                out.push_str(&text[copied..at]);
                out.push_str(MARK);
                copied = at + length;
            }
            at += found.unwrap_or(1);
        }
        out.push_str(&text[copied..]);
        out
    }

    /// How long the longest secret is, as spelled here, that the text begins with: a password is a part of its URL.
    fn length(&self, text: &str) -> Option<usize> {
        let lengths = self.secrets.iter().filter_map(|secret| length(text, secret));
        lengths.max()
    }
}

/// How long a secret is, as spelled here, if the text begins with it. A text may be read in several ways: `%25` is a percent
/// sign in a URL, and three characters elsewhere.
fn length(text: &str, secret: &str) -> Option<usize> {
    let mut ends = vec![0];
    for c in secret.chars() {
        ends = ends
            .iter()
            .flat_map(|&end| {
                spelled(&text[end..], c)
                    .into_iter()
                    .map(move |length| end + length)
            })
            .collect();
        ends.sort_unstable();
        ends.dedup();
        if ends.is_empty() {
            return None;
        }
    }
    ends.last().copied()
}

/// The passwords of a URL, its user's and those among its parameters: as they are, with `+` for a space and without; and as
/// they are written there, which another program may have escaped once more.
pub(crate) fn passwords(url: &str) -> Vec<String> {
    let forms = |written: &str| {
        [
            written.to_owned(),
            decode(written),
            decode(&written.replace('+', " ")),
        ]
    };
    written_passwords(url).into_iter().flat_map(forms).collect()
}

/// As they are written there.
fn written_passwords(url: &str) -> Vec<&str> {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let userinfo = rest
        .split('/')
        .next()
        .and_then(|authority| authority.rsplit_once('@'));
    let of_user = userinfo.and_then(|(userinfo, _)| userinfo.split_once(':'));
    let parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let parameters = parameters.filter(|(name, _)| matches!(*name, "password" | "sslpassword"));
    of_user
        .into_iter()
        .chain(parameters)
        .map(|(_, password)| password)
        .collect()
}

/// `scheme://user:secret@host` becomes `scheme://user:***@host`.
fn clean_urls(text: &str) -> String {
    let mut parts = text.split("://");
    let mut cleaned = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        cleaned.push_str("://");
        match password_in(part) {
            Some(Range { start, end }) => {
                cleaned.push_str(&part[..start]);
                cleaned.push_str(MARK);
                cleaned.push_str(&part[end..]);
            }
            None => cleaned.push_str(part),
        }
    }
    cleaned
}

/// Where the password stands in what comes behind a scheme: from the colon behind a user to the last `@` of the word, for
/// a `/` or another `@` may stand in it as they are. So may a space: then to the last one of the word that has the first.
fn password_in(part: &str) -> Option<Range<usize>> {
    let colon = part.find(|c: char| c.is_whitespace() || ":/@".contains(c))?;
    let start = colon + 1;
    let behind = part[colon..].strip_prefix(':')?.lines().next()?;
    // `host:5432/…` has a port, and `scheme://word: …` nothing.
    let port = behind.split(|c: char| c.is_whitespace() || c == '/').next()?;
    let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if is_port || behind.starts_with(char::is_whitespace) {
        return None;
    }
    let first = behind.find('@')?;
    let word = behind[first..]
        .find(char::is_whitespace)
        .map_or(behind.len(), |length| first + length);
    let end = behind[..word].rfind('@')?;
    Some(start..start + end)
}

/// `?password=secret` becomes `?password=***`.
fn clean_parameters(text: &str) -> String {
    const NAMES: [&str; 2] = ["password=", "sslpassword="];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['?', '&']) {
        let (before, behind) = rest.split_at(at + 1);
        out.push_str(before);
        rest = behind;
        if let Some(name) = NAMES.iter().find(|name| behind.starts_with(**name)) {
            let value = &behind[name.len()..];
            let ends = |c: char| c.is_whitespace() || "&'\"".contains(c);
            rest = &value[value.find(ends).unwrap_or(value.len())..];
            out.push_str(name);
            if rest.len() < value.len() {
                out.push_str(MARK);
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_in_every_form() {
        let scrubber = Scrubber::of_url("postgres://u:p%25a%40b%3A%2F%C3%BC'@h:5432/d?sslmode=require");
        for form in [
            "p%25a%40b%3A%2F%C3%BC'",
            "p%a@b:/ü'",
            "p%25a%40b%3A%2F%C3%BC%27",
            "p%a@b:/ü\\'",
        ] {
            assert_eq!(scrubber.clean(&format!("<{form}>")), "<***>");
        }
    }

    /// As Python's, Java's and Go's libraries, shells, SQL, XML, CSV and ini files write it, and some in others.
    #[test]
    fn a_password_goes_however_it_is_spelled() {
        let url = "postgres://odd:p%40%3A%2F%3F%23%25%26%2B%20%27%22%5Cx%24z%7Bq%7D%C3%A9%3D%3Bs3cr3t@h/d";
        let scrubber = Scrubber::of_url(url);
        for line in include_str!("scrub/spellings.txt").lines() {
            assert_eq!(
                scrubber.clean(&format!("<{line}> s3cret")),
                "<***> s3cret",
                "{line}"
            );
        }
        assert_eq!(scrubber.clean("p%40%3A/?#%& p@:/?#%&+"), "p%40%3A/?#%& p@:/?#%&+");
    }

    #[test]
    fn a_long_text_comes_to_an_end() {
        let scrubber = Scrubber::of_url("postgres://u:%25%5C%26%27aaaaaaab@h/d");
        for unit in ["\\", "%25", "&amp;", "\\x{", "'", "a", "x://u:"] {
            // A search that begins anew at each character would be at it for a day.
            let text = unit.repeat(500_000);
            assert_eq!(scrubber.clean(&text), text);
        }
    }

    #[test]
    fn a_password_among_the_parameters_goes_too() {
        let scrubber =
            Scrubber::of_url("postgres://u@h/d?password=a%40b+c&sslpassword=k%20ey&sslmode=require");
        assert_eq!(
            scrubber.clean("<a%40b+c> <a@b+c> <a@b c> <k ey> require"),
            "<***> <***> <***> <***> require"
        );
    }

    #[test]
    fn other_urls_lose_theirs_too() {
        let scrubber = Scrubber::of_url("postgres://h/d");
        assert_eq!(
            scrubber.clean(
                "a://me:hu sh@db/x?password=hush&b=c b://me:h/u@s?h@db at http://h:80/a@b, c://d: e@f"
            ),
            "a://me:***@db/x?password=***&b=c b://me:***@db at http://h:80/a@b, c://d: e@f"
        );
        assert_eq!(
            scrubber.clean("redis://:hush@cache and postgresql+asyncpg://me:hush@db:1/x, http://plain/a:b@c"),
            "redis://:***@cache and postgresql+asyncpg://me:***@db:1/x, http://plain/a:b@c"
        );
    }

    #[test]
    fn a_url_without_password_leaves_text_alone() {
        assert_eq!(Scrubber::of_url("postgres://u@h/d").clean("u h d"), "u h d");
        assert_eq!(Scrubber::of_url("postgres://u:@h/d").clean("u h d"), "u h d");
    }
}

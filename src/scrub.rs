//! Takes secrets out of what programs have said: passwords, above all.

use crate::database_url::{decode, encode};

/// What stands in the place of a secret.
const MARK: &str = "***";

/// Knows the forms in which some secrets may appear.
#[derive(Clone, Default)]
pub(crate) struct Scrubber {
    forms: Vec<String>,
}

impl Scrubber {
    /// One that knows these secrets.
    pub(crate) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut forms: Vec<String> = secrets.into_iter().collect();
        // As an ini has it.
        forms.extend(forms.clone().iter().map(|form| form.replace('%', "%%")));
        forms.retain(|form| !form.is_empty());
        // Longest first: a short form may be a part of a longer one, as a password is of its URL.
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self { forms }
    }

    /// One that knows the passwords of this URL.
    pub(crate) fn of_url(url: &str) -> Self {
        Self::new(passwords(url))
    }

    /// A text without the secrets, and without the password of any other URL in it.
    pub(crate) fn clean(&self, text: &str) -> String {
        let known = self.forms.iter();
        clean_urls(&known.fold(text.to_owned(), |text, form| take_out(&text, form)))
    }
}

/// The passwords of a URL, its user's and those among its parameters: as they are written there, as they are, and as other
/// programs write what is odd in them.
pub(crate) fn passwords(url: &str) -> Vec<String> {
    let forms = |written: &str| {
        let (plain, spaced) = (decode(written), decode(&written.replace('+', " ")));
        let encoded = [encode(&plain), encode(&spaced)];
        [[written.to_owned(), plain, spaced].to_vec(), encoded.to_vec()].concat()
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
        let end = part
            .find(|c: char| c.is_whitespace() || c == '/')
            .unwrap_or(part.len());
        let userinfo = part[..end].rsplit_once('@').map(|(userinfo, _)| userinfo);
        match userinfo.and_then(|userinfo| userinfo.split_once(':').map(|(user, _)| (user, userinfo.len()))) {
            Some((user, length)) => {
                cleaned.push_str(user);
                cleaned.push(':');
                cleaned.push_str(MARK);
                cleaned.push_str(&part[length..]);
            }
            None => cleaned.push_str(part),
        }
    }
    cleaned
}

/// A text without a secret, however that is quoted there: as it is, or with backslashes before some of its characters, as
/// shells, JSON and most languages write what is odd, JSON in JSON too.
fn take_out(text: &str, secret: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        let behind = secret.chars().try_fold(rest, behind);
        let (said, left) = match behind {
            Some(left) => (MARK, left),
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

    #[test]
    fn a_password_that_a_shell_or_json_has_quoted_goes_too() {
        let scrubber = Scrubber::of_url("postgres://u:p%40ss%2Fw%3Ard%2525%20%23x%22y@h/d");
        let text = r##"<p@ss/w:rd%25\ \#x\"y> <p@ss\/w:rd%25 #x\"y> <p\@ss\/w\:rd\%25\ \#x\"y>"##;
        assert_eq!(scrubber.clean(text), "<***> <***> <***>");
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

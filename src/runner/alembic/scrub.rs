//! Takes a tenant's password out of what its migration wrote to standard error.

use crate::secret::take_out;

/// Knows the forms in which one URL's password may appear.
#[derive(Clone, Default)]
pub(super) struct Scrubber {
    forms: Vec<String>,
}

impl Scrubber {
    /// A scrubber for the password of `url`. The same forms as `Scrubber` in `warm/scrub.py`.
    pub(super) fn new(url: &str) -> Self {
        let mut forms = Vec::new();
        for raw in passwords(url) {
            let (plain, spaced) = (decode(raw), decode(&raw.replace('+', " ")));
            forms.extend([raw.to_owned(), encode(&plain), encode(&spaced)]);
            for form in [plain.replace('\\', "\\\\"), escape(&plain), plain, spaced] {
                // As Python quotes it, which depends on the quotes in it, and as JSON does.
                forms.push(form.replace('\'', "\\'"));
                forms.push(form.replace('"', "\\\""));
                forms.push(form);
            }
        }
        // As an ini has it.
        forms.extend(forms.clone().iter().map(|form| form.replace('%', "%%")));
        forms.retain(|form| !form.is_empty());
        // Longest first: a short form may be a part of a longer one.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Self { forms }
    }

    /// `text` with `***` for the password, and for that of any other URL in it.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for form in &self.forms {
            text = take_out(&text, form, "***");
        }
        clean_urls(&text)
    }
}

/// The passwords of a URL, as they are written there: its user's, and those among its parameters.
fn passwords(url: &str) -> Vec<&str> {
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
                cleaned.push_str(":***");
                cleaned.push_str(&part[length..]);
            }
            None => cleaned.push_str(part),
        }
    }
    cleaned
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As Python's `ascii()` writes it.
fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match u32::from(c) {
            0x5c => "\\\\".to_owned(),
            0x20..=0x7e => c.to_string(),
            code @ ..=0xff => format!("\\x{code:02x}"),
            code @ ..=0xffff => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        })
        .collect()
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_in_every_form() {
        let scrubber = Scrubber::new("postgres://u:p%25a%40b%3A%2F%C3%BC'@h:5432/d?sslmode=require");
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
        let scrubber = Scrubber::new("postgres://u:p%40ss%2Fw%3Ard%2525%20%23x%22y@h/d");
        let text = r##"<p@ss/w:rd%25\ \#x\"y> <p@ss\/w:rd%25 #x\"y> <p\@ss\/w\:rd\%25\ \#x\"y>"##;
        assert_eq!(scrubber.clean(text), "<***> <***> <***>");
    }

    #[test]
    fn a_password_among_the_parameters_goes_too() {
        let scrubber = Scrubber::new("postgres://u@h/d?password=a%40b+c&sslpassword=k%20ey&sslmode=require");
        assert_eq!(
            scrubber.clean("<a%40b+c> <a@b+c> <a@b c> <k ey> require"),
            "<***> <***> <***> <***> require"
        );
    }

    #[test]
    fn other_urls_lose_theirs_too() {
        let scrubber = Scrubber::new("postgres://h/d");
        assert_eq!(
            scrubber.clean("redis://:hush@cache and postgresql+asyncpg://me:hush@db:1/x, http://plain/a:b@c"),
            "redis://:***@cache and postgresql+asyncpg://me:***@db:1/x, http://plain/a:b@c"
        );
    }

    #[test]
    fn a_url_without_password_leaves_text_alone() {
        assert_eq!(Scrubber::new("postgres://u@h/d").clean("u h d"), "u h d");
        assert_eq!(Scrubber::new("postgres://u:@h/d").clean("u h d"), "u h d");
    }
}

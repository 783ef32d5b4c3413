//! The ways in which a character may be written: as it is, doubled, escaped by percent sign, backslash or ampersand.

/// How many backslashes may stand before a character. JSON in JSON has 3, and once more in JSON 7.
const BACKSLASHES: usize = 15;

/// A quote inside of quotes, as shells have it: end, a quote by other means, begin.
const SHELL_QUOTES: [&str; 2] = ["'\\''", "'\"'\"'"];

/// The characters that XML has a name for.
const ENTITIES: [(char, &str); 5] = [
    ('&', "amp;"),
    ('<', "lt;"),
    ('>', "gt;"),
    ('"', "quot;"),
    ('\'', "apos;"),
];

/// What a spelling of a character can begin with.
pub(super) fn first_bytes(c: char) -> Vec<u8> {
    let own = c.encode_utf8(&mut [0; 4]).as_bytes()[0];
    let space = (c == ' ').then_some(b'+');
    [own, b'%', b'\\', b'&'].into_iter().chain(space).collect()
}

/// How long the character is at the beginning of a text, in each way to read that. None: something else stands there.
pub(super) fn spelled(text: &str, c: char) -> Vec<usize> {
    let mut lengths = as_it_is(text, c);
    lengths.extend(
        match text.as_bytes().first() {
            Some(b'%') => vec![spelled_in(text, bytes(c), percent)],
            Some(b'&') => vec![entity(text, c)],
            Some(b'\\') => by_backslash(text, c),
            Some(b'+') if c == ' ' => vec![Some(1)],
            Some(b'\'') if c == '\'' => in_shell_quotes(text),
            _ => vec![],
        }
        .into_iter()
        .flatten(),
    );
    lengths
}

/// Plain; or doubled, as SQL, CSV, an ini and most templates have what is special to them. Of backslashes there may be more.
fn as_it_is(text: &str, c: char) -> Vec<usize> {
    let most = match c {
        '\\' => BACKSLASHES,
        c if c.is_ascii_punctuation() => 2,
        _ => 1,
    };
    let there = text.chars().take(most).take_while(|next| *next == c).count();
    (1..=there).map(|count| count * c.len_utf8()).collect()
}

fn in_shell_quotes(text: &str) -> Vec<Option<usize>> {
    let quotes = SHELL_QUOTES.into_iter().find(|quotes| text.starts_with(quotes));
    vec![quotes.map(str::len)]
}

/// As shells, JSON and most languages write what is odd: with backslashes before it, or by number.
fn by_backslash(text: &str, c: char) -> Vec<Option<usize>> {
    let bare = behind_backslashes(text).unwrap_or_default();
    let behind = |length: usize| text.len() - bare.len() + length;
    let mut units = [0; 2];
    let units = c.encode_utf16(&mut units).iter().map(|unit| u32::from(*unit));
    vec![
        bare.starts_with(c).then(|| behind(c.len_utf8())),
        entity(bare, c).map(behind),
        spelled_in(text, [u32::from(c)], number),
        spelled_in(text, bytes(c), number),
        spelled_in(text, units, number),
    ]
}

/// How long all the units of a character are at the beginning of a text, as `read` finds one of them.
fn spelled_in(
    text: &str,
    units: impl IntoIterator<Item = u32>,
    read: impl Fn(&str) -> Option<(u32, &str)>,
) -> Option<usize> {
    let rest = units.into_iter().try_fold(text, |rest, unit| {
        let (value, rest) = read(rest)?;
        (value == unit).then_some(rest)
    });
    Some(text.len() - rest?.len())
}

fn bytes(c: char) -> impl Iterator<Item = u32> {
    c.to_string().into_bytes().into_iter().map(u32::from)
}

/// `%3A`, and `%%3A` as an ini has it.
fn percent(text: &str) -> Option<(u32, &str)> {
    let rest = text.strip_prefix('%')?;
    digits(rest.strip_prefix('%').unwrap_or(rest), 16, 2)
}

/// `\x3a`, `\u003a`, `\U0000003a`, `\x{3a}`, `\072`.
fn number(text: &str) -> Option<(u32, &str)> {
    let bare = behind_backslashes(text)?;
    let (length, rest) = match bare.as_bytes().first()? {
        b'x' => (2, &bare[1..]),
        b'u' => (4, &bare[1..]),
        b'U' => (8, &bare[1..]),
        _ => return digits(bare, 8, 3),
    };
    match rest.strip_prefix('{') {
        Some(rest) => {
            up_to(rest, '}').and_then(|(code, rest)| Some((u32::from_str_radix(code, 16).ok()?, rest)))
        }
        None => digits(rest, 16, length),
    }
}

/// `&amp;`, `&#38;`, `&#x26;`; and with another `&amp;` for their own ampersand.
fn entity(text: &str, c: char) -> Option<usize> {
    let rest = text.strip_prefix('&')?;
    [Some(rest), rest.strip_prefix("amp;")]
        .into_iter()
        .flatten()
        .filter_map(|body| Some(text.len() - behind_entity(body, c)?.len()))
        .max()
}

fn behind_entity(body: &str, c: char) -> Option<&str> {
    let name = ENTITIES.iter().find(|(named, _)| *named == c);
    if let Some(rest) = name.and_then(|(_, name)| body.strip_prefix(name)) {
        return Some(rest);
    }
    let (code, rest) = up_to(body.strip_prefix('#')?, ';')?;
    let value = match code.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => code.parse(),
    };
    (value == Ok(u32::from(c))).then_some(rest)
}

/// A number, which is short, and what comes behind its end.
fn up_to(text: &str, end: char) -> Option<(&str, &str)> {
    let at = text.char_indices().take(10).find(|(_, c)| *c == end)?.0;
    Some((&text[..at], &text[at + end.len_utf8()..]))
}

fn behind_backslashes(text: &str) -> Option<&str> {
    let count = text
        .bytes()
        .take(BACKSLASHES + 1)
        .take_while(|b| *b == b'\\')
        .count();
    (1..=BACKSLASHES).contains(&count).then(|| &text[count..])
}

/// A number of just so many digits.
fn digits(text: &str, radix: u32, length: usize) -> Option<(u32, &str)> {
    let (number, rest) = text.split_at_checked(length)?;
    let is_number = number.chars().all(|c| c.is_digit(radix));
    Some((
        u32::from_str_radix(number, radix).ok().filter(|_| is_number)?,
        rest,
    ))
}

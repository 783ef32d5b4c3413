//! PostgreSQL's lexer, as far as it says which words, names and strings a text is made of.

use std::ops::Range;

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Spaces and comments.
    Blank,
    /// A keyword, or a name without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// A string, in whichever quotes.
    Text,
    /// The digits of a number, or any other character.
    Symbol,
}

/// A piece of SQL that is neither space nor comment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(super) kind: Kind,
    pub(crate) text: &'a str,
}

impl Token<'_> {
    /// Whether it is this keyword. A keyword in quotes is a name.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Whether it is one of these keywords.
    pub(crate) fn is_any(&self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    /// The name that it stands for, if it can be one.
    pub(crate) fn name(&self) -> Option<String> {
        match self.kind {
            Kind::Word => Some(self.text.to_ascii_lowercase()),
            Kind::Quoted => {
                let inner = self.text.strip_prefix('"')?.strip_suffix('"')?;
                Some(inner.replace("\"\"", "\""))
            }
            _ => None,
        }
    }

    /// The string that it stands for, if it is one in plain quotes.
    pub(crate) fn string(&self) -> Option<String> {
        let inner = self.text.strip_prefix('\'')?.strip_suffix('\'')?;
        (self.kind == Kind::Text).then(|| inner.replace("''", "'"))
    }

    /// Whether it is a string, in whichever quotes.
    pub(crate) fn is_text(&self) -> bool {
        self.kind == Kind::Text
    }

    /// What stands in a string, as it is written, in whichever quotes.
    pub(crate) fn inside(&self) -> Option<&str> {
        let text = (self.kind == Kind::Text).then_some(self.text)?;
        let tag = match text.strip_prefix('$') {
            Some(rest) => rest.find('$')? + 2,
            None => text.find('\'')? + 1,
        };
        let end = text
            .len()
            .checked_sub(if text.starts_with('$') { tag } else { 1 })?;
        text.get(tag..end)
    }

    /// Whether it is a name in quotes.
    fn is_quoted(&self) -> bool {
        self.kind == Kind::Quoted
    }
}

/// Which keywords stand where in a statement.
pub(crate) trait Words {
    /// Whether the token there is this keyword.
    fn is(&self, at: usize, keyword: &str) -> bool;

    /// Whether the token there is one of these keywords.
    fn is_any(&self, at: usize, keywords: &[&str]) -> bool;
}

impl Words for [Token<'_>] {
    fn is(&self, at: usize, keyword: &str) -> bool {
        self.get(at).is_some_and(|token| token.is(keyword))
    }

    fn is_any(&self, at: usize, keywords: &[&str]) -> bool {
        self.get(at).is_some_and(|token| token.is_any(keywords))
    }
}

/// The tokens of a text with their places.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = (Range<usize>, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.text[self.at..];
        let first = rest.chars().next()?;
        let (kind, len) = match first {
            c if is_space(c) => (Kind::Blank, 1),
            '-' if rest.starts_with("--") => (Kind::Blank, line_comment(rest)),
            '/' if rest.starts_with("/*") => (Kind::Blank, block_comment(rest)),
            '\'' => (Kind::Text, quoted(rest, b'\'', false)),
            'e' | 'E' if rest[1..].starts_with('\'') => (Kind::Text, escaped(rest)),
            '"' => (Kind::Quoted, quoted(rest, b'"', false)),
            '$' => match dollar_quoted(rest) {
                Some(len) => (Kind::Text, len),
                None => (Kind::Symbol, 1),
            },
            c if is_word(c) => (Kind::Word, word(rest)),
            c if c.is_ascii_digit() => (Kind::Symbol, number(rest)),
            c => (Kind::Symbol, c.len_utf8()),
        };
        let range = self.at..self.at + len;
        self.at = range.end;
        let text = &self.text[range.clone()];
        Some((range, Token { kind, text }))
    }
}

/// What the server takes for a space. It reads bytes: any space beyond ASCII is a letter to it.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c' | '\x0b')
}

fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// The length of the digits that a text begins with. A `$` behind them begins something else, as does a letter.
fn number(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

/// The length of a comment that ends where its line does: at either character that ends lines.
fn line_comment(text: &str) -> usize {
    text.find(is_newline).unwrap_or(text.len())
}

/// The length of `E'…'`. A string goes on on another line, and so do its backslashes.
fn escaped(text: &str) -> usize {
    let mut len = 1 + quoted(&text[1..], b'\'', true);
    while let Some(blank) = continuation(&text[len..]) {
        len += blank;
        len += quoted(&text[len..], b'\'', true);
    }
    len
}

/// The length of what may stand between the parts of a string: spaces and comments, with the end of a line among them.
fn continuation(text: &str) -> Option<usize> {
    let (mut at, mut has_newline) = (0, false);
    loop {
        let rest = &text[at..];
        at += match rest.chars().next()? {
            '\'' => return has_newline.then_some(at),
            '-' if rest.starts_with("--") => line_comment(rest),
            c if is_space(c) => {
                has_newline |= is_newline(c);
                1
            }
            _ => return None,
        };
    }
}

fn word(text: &str) -> usize {
    text.find(|c: char| !(is_word(c) || c.is_ascii_digit() || c == '$'))
        .unwrap_or(text.len())
}

/// The length of a comment that other comments may stand in.
fn block_comment(text: &str) -> usize {
    let (bytes, mut depth, mut i) = (text.as_bytes(), 0, 0);
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

/// The length of a text in quotes. Two quotes stand for one.
fn quoted(text: &str, quote: u8, backslashes: bool) -> usize {
    let (bytes, mut i) = (text.as_bytes(), 1);
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if backslashes => i += 2,
            b if b == quote && bytes.get(i + 1) == Some(&quote) => i += 2,
            b if b == quote => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// The length of `$tag$ … $tag$`, if the text begins with such a tag.
fn dollar_quoted(text: &str) -> Option<usize> {
    let inner = text[1..].find('$')?;
    let tag = &text[1..=inner];
    let starts_well = !tag.starts_with(|c: char| c.is_ascii_digit());
    if !starts_well || !tag.chars().all(|c| is_word(c) || c.is_ascii_digit()) {
        return None;
    }
    let delimiter = &text[..inner + 2];
    Some(match text[delimiter.len()..].find(delimiter) {
        Some(end) => end + 2 * delimiter.len(),
        None => text.len(),
    })
}

/// The names in quotes of a text, with their places.
pub(crate) fn quoted_names(text: &str) -> impl Iterator<Item = Range<usize>> {
    let all = Lexer::of(text);
    all.filter(|(_, token)| token.is_quoted()).map(|(range, _)| range)
}

/// The tokens of a statement.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let all = Lexer::of(text);
    all.map(|(_, token)| token)
        .filter(|token| token.kind != Kind::Blank)
        .collect()
}

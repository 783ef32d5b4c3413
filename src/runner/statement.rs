//! Where the statements of an SQL text begin and end: enough of PostgreSQL's lexer to know a semicolon that ends a
//! statement from one that does not, as psql does it.

use std::ops::Range;

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
    kind: Kind,
    pub(crate) text: &'a str,
}

impl Token<'_> {
    /// Whether it is this keyword. A keyword in quotes is a name.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
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
}

impl Token<'_> {
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

/// The tokens of a text with their places.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
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
    let all = Lexer { text, at: 0 };
    all.filter(|(_, token)| token.is_quoted()).map(|(range, _)| range)
}

/// Whether nothing that was opened in a text is left open at its end: no quote, comment, bracket or body. What comes
/// behind it in one message is then read as it stands.
pub(crate) fn is_closed(text: &str) -> bool {
    // In a text that is closed, a semicolon behind it ends a statement; in an open one it is part of something.
    let probe = format!("{text}\n;probe");
    split(&probe)
        .last()
        .is_some_and(|last| &probe[last.clone()] == "probe")
}

/// The tokens of a statement.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let all = Lexer { text, at: 0 };
    all.map(|(_, token)| token)
        .filter(|token| token.kind != Kind::Blank)
        .collect()
}

/// The statements of a text, without the blanks around them and the semicolon behind. What the server counts: an
/// empty statement is none.
pub(crate) fn split(text: &str) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let mut current: Option<Range<usize>> = None;
    let mut nesting = Nesting::default();
    for (range, token) in (Lexer { text, at: 0 }) {
        match token.kind {
            Kind::Blank => {}
            Kind::Symbol if token.text == ";" && nesting.is_outside() => {
                statements.extend(current.take());
                nesting = Nesting::default();
            }
            _ => {
                nesting.enter(&token);
                current = Some(current.map_or(range.start, |c| c.start)..range.end);
            }
        }
    }
    statements.extend(current);
    statements
}

/// Where a semicolon does not end a statement: in brackets (CREATE RULE), and in the body of a function that is
/// written as SQL (BEGIN ATOMIC … END).
#[derive(Default)]
struct Nesting {
    brackets: usize,
    blocks: usize,
    words: usize,
    creates: bool,
    replaces: bool,
    routine: bool,
}

impl Nesting {
    fn is_outside(&self) -> bool {
        self.brackets == 0 && self.blocks == 0
    }

    fn enter(&mut self, token: &Token<'_>) {
        match token.text {
            "(" => self.brackets += 1,
            ")" => self.brackets = self.brackets.saturating_sub(1),
            _ if token.kind != Kind::Word => {}
            _ => {
                self.words += 1;
                self.creates |= self.words == 1 && token.is("create");
                self.replaces |= self.words == 2 && token.is("or");
                // CREATE [OR REPLACE] FUNCTION: it is the second or the fourth word.
                let place = if self.replaces { 4 } else { 2 };
                self.routine |=
                    self.creates && self.words == place && (token.is("function") || token.is("procedure"));
                if self.routine && self.brackets == 0 {
                    self.block(token);
                }
            }
        }
    }

    fn block(&mut self, token: &Token<'_>) {
        if token.is("begin") || (self.blocks > 0 && token.is("case")) {
            self.blocks += 1;
        } else if token.is("end") {
            self.blocks = self.blocks.saturating_sub(1);
        }
    }
}

/// The byte of the `position`th character, counted from 1: how the server says where an error is.
pub(crate) fn byte_of(text: &str, position: usize) -> usize {
    text.char_indices()
        .nth(position.saturating_sub(1))
        .map_or(text.len(), |(byte, _)| byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn statements(text: &str) -> Vec<&str> {
        split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn semicolons_in_quotes_comments_and_bodies_end_nothing() {
        let body = "create function f() returns int language plpgsql as $f$ begin return 1; end; $f$";
        let atomic = "create or replace function g(a int) returns int begin atomic \
                      select case when a > 1 then 1 else 2 end; select 2; end";
        let rule = "create rule r as on insert to t do (delete from a; delete from b)";
        let text = format!(
            "-- first; not yet\n select 'a;''b' , E'\\';' ;; /* ; /* ; */ ; */ {body};\n{atomic};{rule};\nselect \"x;y\", $1;  -- end;"
        );
        assert_eq!(
            statements(&text),
            [
                "select 'a;''b' , E'\\';'",
                body,
                atomic,
                rule,
                "select \"x;y\", $1"
            ]
        );
        assert_eq!(statements(" ; -- nothing\n"), [""; 0]);
        assert_eq!(statements("select $$a;"), ["select $$a;"]);
        assert_eq!(
            statements("create table begin_case (a int); select 1"),
            ["create table begin_case (a int)", "select 1"]
        );
    }

    #[test]
    fn a_comment_ends_with_its_line_however_that_ends() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("create table a (); -- it's; {end}commit;--{end}select 2");
            assert_eq!(statements(&text), ["create table a ()", "commit", "select 2"]);
        }
        assert_eq!(
            statements("select 1 --\x0b\x0c\u{85}\u{2028}; select 2"),
            ["select 1"]
        );
    }

    #[test]
    fn what_the_server_reads_as_one_is_one() {
        for one in [
            // A string that goes on on the next line keeps its backslashes, or has none.
            "select E'a'\n'b\\'; c'",
            "select e'a' \t-- it's\r --\n 'b\\'; c'",
            "select 'a\\' || ';'",
            "select U&'\\0061;' || u&\";\" || n';' || b'0'';'",
            "select a$b$, $1$_$;$_$",
            "select 1$$;$$",
            "select $a1$ ; $a$ ; $b$a1$",
            "/* ; /* ; /*/ ; */ ***/ ; */ select 1",
            "select 1 +-- ;\n2 */* ; */ 3 - /**/ -1",
            // To the server, such a space is a letter.
            "select 1 as a\u{a0}$$",
            "select\x0b1\x0c",
        ] {
            assert_eq!(split(one).len(), 1, "{one:?}");
        }
        for (two, second) in [
            ("select E'a\\\\';'b'", "'b'"),
            ("select E'a' 'b\\'; c", "c"),
            ("select E'a'\n/* */ 'b\\'; c", "c"),
            ("select ne'a\\'; c", "c"),
            ("select $a$ ; $b$ ; $a$; c", "c"),
            ("select a\u{a0}$$; c", "c"),
            ("create view function as select begin; c", "c"),
            ("create or replace view function as select 1 as begin; c", "c"),
            (
                "create function f() returns int begin atomic select case when true then 1end; end; c",
                "c",
            ),
        ] {
            assert_eq!(statements(two).last(), Some(&second), "{two:?}");
            assert_eq!(split(two).len(), 2, "{two:?}");
        }
    }

    #[test]
    fn what_is_left_open_is_seen() {
        for closed in [
            "",
            "select 1",
            "select 1; -- it's",
            "select ')'; /* ( */",
            "select 'a' \"b\" $$c$$",
        ] {
            assert!(is_closed(closed), "{closed}");
        }
        for open in [
            "select 'a",
            "select \"a",
            "select $$a",
            "/* a",
            "select (1",
            "select E'a\\'",
        ] {
            assert!(!is_closed(open), "{open}");
        }
        let body = "create function f() returns int begin atomic select 1;";
        assert!(!is_closed(body));
    }

    #[test]
    fn a_position_counts_characters() {
        assert_eq!(byte_of("äbc", 2), 2);
        assert_eq!(byte_of("ab", 9), 2);
    }

    #[test]
    fn a_name_is_folded_unless_it_is_quoted() {
        let names: Vec<_> = tokens("Ab \"C\"\"d\" 'x'").iter().map(Token::name).collect();
        assert_eq!(names, [Some("ab".into()), Some("C\"d".into()), None]);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_lexer(text in "[-a-e;'\"$/*\\\\ \n\r()ä\u{a0}0_]{0,60}") {
            for range in split(&text) {
                prop_assert!(!text[range].is_empty());
            }
        }
    }
}

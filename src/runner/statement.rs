//! Where the statements of an SQL text begin and end: enough of PostgreSQL's lexer to know a semicolon that ends a
//! statement from one that does not, as psql does it.

mod lexer;

use std::ops::Range;

use self::lexer::{Kind, Lexer};
pub(crate) use self::lexer::{Token, Words, quoted_names, tokens};

/// Whether nothing that was opened in a text is left open at its end: no quote, comment, bracket or body. What comes
/// behind it in one message is then read as it stands.
pub(crate) fn is_closed(text: &str) -> bool {
    // In a text that is closed, a semicolon behind it ends a statement; in an open one it is part of something.
    let probe = format!("{text}\n;probe");
    split(&probe)
        .last()
        .is_some_and(|last| &probe[last.clone()] == "probe")
}

/// The statements of a text, without the blanks around them and the semicolon behind. What the server counts: an
/// empty statement is none.
pub(crate) fn split(text: &str) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let mut current: Option<Range<usize>> = None;
    let mut nesting = Nesting::default();
    for (range, token) in Lexer::of(text) {
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

/// The statements of a text, as [`split`] finds them.
pub(crate) fn statements(text: &str) -> impl Iterator<Item = &str> {
    split(text).into_iter().map(|range| &text[range])
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

    fn texts(text: &str) -> Vec<&str> {
        statements(text).collect()
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
            texts(&text),
            [
                "select 'a;''b' , E'\\';'",
                body,
                atomic,
                rule,
                "select \"x;y\", $1"
            ]
        );
        assert_eq!(texts(" ; -- nothing\n"), [""; 0]);
        assert_eq!(texts("select $$a;"), ["select $$a;"]);
        assert_eq!(
            texts("create table begin_case (a int); select 1"),
            ["create table begin_case (a int)", "select 1"]
        );
    }

    #[test]
    fn a_comment_ends_with_its_line_however_that_ends() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("create table a (); -- it's; {end}commit;--{end}select 2");
            assert_eq!(texts(&text), ["create table a ()", "commit", "select 2"]);
        }
        assert_eq!(texts("select 1 --\x0b\x0c\u{85}\u{2028}; select 2"), ["select 1"]);
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
            assert_eq!(texts(two).last(), Some(&second), "{two:?}");
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

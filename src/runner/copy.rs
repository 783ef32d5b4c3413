//! COPY between a table and the client. psql sends the data that stands behind it in a file, or prints what comes; a program
//! has neither.

use super::statement::{statements, tokens};
use crate::tenant_error::TenantError;

/// Refuses a text with such a COPY in it. To be asked before anything is done: in the middle, the server takes the data for
/// statements, and nobody would know what was done. `file`: where the text stands.
pub(super) fn refuse_copy(text: &str, file: Option<&str>, revision: Option<&str>) -> Result<(), TenantError> {
    // Hardly any file has the word: the others are not read twice.
    let has_word = text
        .as_bytes()
        .windows(3)
        .any(|word| word.eq_ignore_ascii_case(b"std"));
    let Some((way, copy)) = has_word.then(|| find(text)).flatten() else {
        return Ok(());
    };
    let (message, hint) = match way {
        Way::In => (
            "COPY … FROM stdin has nobody to read from",
            "write INSERT instead: only psql reads data out of a file of statements",
        ),
        Way::Out => (
            "COPY … TO stdout has nobody to write to",
            "leave it out: only psql prints what it gives",
        ),
    };
    Err(TenantError::Tool {
        message: match file {
            Some(file) => format!("{file}: {message}"),
            None => message.into(),
        },
        sqlstate: None,
        revision: revision.map(str::to_owned),
        statement: Some(copy.to_owned()),
        hint: Some(hint.into()),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// The first COPY with the client, as it stands.
fn find(text: &str) -> Option<(Way, &str)> {
    statements(text).find_map(|statement| {
        let tokens = tokens(statement);
        if !tokens.first()?.is("copy") {
            return None;
        }
        // In brackets, it is a query's.
        let mut depth = 0;
        tokens.windows(2).find_map(|pair| {
            match pair[0].text {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            // The server takes either word for both ways.
            if depth != 0 || !pair[1].is_any(&["stdin", "stdout"]) {
                return None;
            }
            let ways = [("from", Way::In), ("to", Way::Out)];
            let (_, way) = ways.into_iter().find(|(word, _)| pair[0].is(word))?;
            Some((way, statement))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_with_the_client_is_found() {
        for (text, found) in [
            ("select 1; COPY a (b) FROM STDIN csv;\n1\n\\.", Some(Way::In)),
            ("copy a\n  to stdout", Some(Way::Out)),
            ("copy (select * from \"stdin\") to stdin", Some(Way::Out)),
            ("copy (select * from stdin) to '/tmp/a'", None),
            ("copy a from '/tmp/stdin'", None),
            (
                "insert into a select 'copy a to stdout'; -- copy a to stdout",
                None,
            ),
            ("select a from stdout", None),
        ] {
            assert_eq!(find(text).map(|(way, _)| way), found, "{text}");
        }
    }
}

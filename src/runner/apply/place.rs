//! A tenant's schema, put into the SQL of a plan.

use std::borrow::Cow;

use crate::{
    domain::plan::{Plan, SCHEMA, StepForm},
    runner::statement::quoted_names,
    session::quote,
};

/// Whether a plan can be applied in a schema of this name.
pub(crate) fn fits(plan: &Plan, schema: &str) -> bool {
    is_plain(schema)
        || plan
            .steps
            .iter()
            .flat_map(|s| texts(&s.form))
            .all(|sql| placed(sql, schema).is_some())
}

fn texts(form: &StepForm) -> Vec<&str> {
    match form {
        StepForm::Transaction { sql } => vec![sql],
        StepForm::Outside {
            announce,
            withdraw,
            begin,
            statements,
            record,
        } => {
            let said = [announce, withdraw, begin, record].into_iter().flatten();
            said.chain(statements).map(String::as_str).collect()
        }
    }
}

/// The SQL with a schema in its place. None: the name has characters in it that would mean something where the SQL
/// names the schema other than as an identifier, say in a string, or in the body of a function.
pub(crate) fn placed<'a>(sql: &'a str, schema: &str) -> Option<Cow<'a, str>> {
    if !sql.contains(SCHEMA) {
        return Some(Cow::Borrowed(sql));
    }
    if is_plain(schema) {
        return Some(Cow::Owned(sql.replace(SCHEMA, schema)));
    }
    let identifier = quote(SCHEMA);
    let (mut text, mut copied) = (String::with_capacity(sql.len() + 64), 0);
    for range in quoted_names(sql).filter(|range| sql[range.clone()] == identifier) {
        text.push_str(&sql[copied..range.start]);
        text.push_str(&quote(schema));
        copied = range.end;
    }
    text.push_str(&sql[copied..]);
    let elsewhere = text.replace(&quote(schema), "").contains(SCHEMA);
    (!elsewhere).then_some(Cow::Owned(text))
}

/// Whether a name is itself in any quotes, or several of them.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_- .:@+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = r#"create table "Herder:Tenant".a (); -- in "Herder:Tenant""#;

    #[test]
    fn a_plain_name_stands_anywhere() {
        let sql = r#"select nextval('"Herder:Tenant".s'); do $$ begin perform 'Herder:Tenant'; end $$"#;
        assert_eq!(
            placed(sql, "Äcme-1").as_deref(),
            Some(r#"select nextval('"Äcme-1".s'); do $$ begin perform 'Äcme-1'; end $$"#)
        );
    }

    #[test]
    fn an_odd_name_stands_where_an_identifier_does_and_nowhere_else() {
        let odd = r#"a"b'$$"#;
        assert_eq!(
            placed(r#"table "Herder:Tenant".a"#, odd).as_deref(),
            Some(r#"table "a""b'$$".a"#)
        );
        for sql in [r#"select '"Herder:Tenant".a'"#, "do $$ 'Herder:Tenant' $$", SQL] {
            assert_eq!(placed(sql, odd), None, "{sql}");
        }
        assert_eq!(placed("select 1", odd).as_deref(), Some("select 1"));
    }
}

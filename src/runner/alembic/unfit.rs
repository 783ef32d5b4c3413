//! What keeps a plan away from a tenant besides where its ledger stands: then Alembic itself says what is wrong there.
//!
//! A name without a schema means the tenant's own table where it has one, and where it has none, another schema's that env.py has in
//! its search_path. And a ledger with the same row twice is one that Alembic refuses.

use std::collections::{BTreeSet, HashSet};

use crate::{
    domain::plan::{PlanStep, SCHEMA},
    runner::{
        apply::{UNFIT, block, raise},
        statement::{Token, split, tokens},
    },
    session::{literal, quote},
};

/// A plan's [`check`](crate::domain::plan::Plan::check), for a ledger in this table.
pub(super) fn check(steps: &[PlanStep], table: &str) -> String {
    let table = quote(table).replace('%', "%%");
    let schema = "pg_catalog.current_schema()";
    let mut body = format!(
        "if pg_catalog.to_regclass(pg_catalog.format({0}, {schema})) is null then return; end if; \
         execute pg_catalog.format({1}, {schema}) into herder_odd; if herder_odd is not null then {2}; end if; ",
        literal(&format!("%I.{table}")),
        literal(&format!(
            "select version_num::pg_catalog.text from %I.{table} group by 1 having count(*) > 1 limit 1"
        )),
        raise(
            UNFIT,
            "a row of the ledger is there twice",
            "pg_catalog.concat('a place where its ledger has ', herder_odd, ' more than once')"
        ),
    );
    for Strayed { name, own, others } in strayed(steps) {
        body += &format!(
            "if {own} is null and {others} is not null then {}; end if; ",
            raise(
                UNFIT,
                "a name means another schema's",
                &literal(&format!(
                    "a place where it has no {name}, and another schema has one"
                ))
            )
        );
    }
    block("herder_odd pg_catalog.text;", &body)
}

/// A plan's [`quick`](crate::domain::plan::Plan::quick) to that. None: nothing is ever in the ledger then.
pub(super) fn quick(steps: &[PlanStep], before: &BTreeSet<String>, table: &str) -> Option<String> {
    let rows: Vec<String> = before.iter().map(|row| literal(row)).collect();
    let is_exactly = format!(
        "array(select version_num::pg_catalog.text from {}.{} order by version_num::pg_catalog.text collate \"C\") \
         = array[{}]::pg_catalog.text[]",
        quote(SCHEMA),
        quote(table),
        rows.join(", ")
    );
    let names = strayed(steps)
        .map(|Strayed { own, others, .. }| format!(" and ({own} is not null or {others} is null)"));
    (!before.is_empty()).then(|| is_exactly + &names.collect::<String>())
}

/// A name that may lead a plan to another schema.
struct Strayed {
    name: String,
    /// An expression that is null where the tenant has none of that name.
    own: String,
    /// The same for the schemas behind the tenant's.
    others: String,
}

fn strayed(steps: &[PlanStep]) -> impl Iterator<Item = Strayed> {
    let behind: Vec<String> = behind(steps);
    let names = if behind.is_empty() {
        Vec::new()
    } else {
        changed(steps)
    };
    names.into_iter().map(move |name| {
        let found = |schema: &str| {
            let name = literal(&format!("{}.{name}", quote(schema)));
            format!("pg_catalog.to_regclass({name})::pg_catalog.oid")
        };
        let others: Vec<String> = behind.iter().map(|schema| found(schema)).collect();
        Strayed {
            own: format!(
                "pg_catalog.to_regclass(pg_catalog.concat(pg_catalog.quote_ident(pg_catalog.current_schema()), {}))",
                literal(&format!(".{name}"))
            ),
            others: format!("coalesce({})", others.join(", ")),
            name,
        }
    })
}

/// The schemas behind the tenant's in the search_path that the steps begin with.
fn behind(steps: &[PlanStep]) -> Vec<String> {
    const NOBODYS: [&str; 4] = [SCHEMA, "$user", "pg_catalog", "pg_temp"];
    let mut behind = Vec::new();
    for text in steps.iter().flat_map(|step| step.form.statements()) {
        for statement in split(text).into_iter().map(|range| &text[range]) {
            for schema in path(&tokens(statement)) {
                if !NOBODYS.contains(&schema.as_str()) && !behind.contains(&schema) {
                    behind.push(schema);
                }
            }
        }
    }
    behind
}

/// The search_path that a statement sets.
fn path(tokens: &[Token<'_>]) -> Vec<String> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let named = |token: &Token<'_>| token.name().or_else(|| token.string());
    let local = 1 + usize::from(is(1, "local") || is(1, "session"));
    if is(0, "set") && is(local, "search_path") {
        return tokens.iter().skip(local + 2).filter_map(named).collect();
    }
    let called = tokens
        .iter()
        .position(|token| is(0, "select") && token.string().as_deref() == Some("search_path"));
    let value = called.and_then(|at| tokens.get(at + 2)?.string());
    let schemas = value.iter().flat_map(|value| value.split(','));
    schemas
        .map(|schema| schema.trim().trim_matches('"').to_owned())
        .collect()
}

/// The tables, views and sequences that the steps alter or drop by a name without a schema, as it is written. Not those that they
/// have made themselves by then.
fn changed(steps: &[PlanStep]) -> Vec<String> {
    let (mut made, mut changed) = (HashSet::new(), Vec::new());
    for text in steps.iter().flat_map(|step| step.form.statements()) {
        for statement in split(text).into_iter().map(|range| &text[range]) {
            let tokens = tokens(statement);
            let makes = tokens.first().is_some_and(|first| first.is("create"));
            for (name, written) in bare_names(&tokens) {
                if makes {
                    made.insert(name);
                } else if !made.contains(&name) && !changed.contains(&written) {
                    changed.push(written);
                }
            }
            let renamed = tokens.windows(3).find(|t| t[0].is("rename") && t[1].is("to"));
            made.extend(renamed.and_then(|t| t[2].name()));
        }
    }
    changed
}

/// What a statement makes, alters or drops by a name without a schema: what it is called, and how that is written.
fn bare_names(tokens: &[Token<'_>]) -> Vec<(String, String)> {
    const BEFORE_KIND: [&str; 9] = [
        "or",
        "replace",
        "global",
        "local",
        "temp",
        "temporary",
        "unlogged",
        "recursive",
        "materialized",
    ];
    const BEFORE_NAME: [&str; 4] = ["if", "not", "exists", "only"];
    let is_one = |token: &&Token<'_>, words: &[&str]| words.iter().any(|word| token.is(word));
    let mut rest = tokens.iter().peekable();
    if !rest
        .next()
        .is_some_and(|first| is_one(&first, &["create", "alter", "drop"]))
    {
        return Vec::new();
    }
    while rest.next_if(|token| is_one(token, &BEFORE_KIND)).is_some() {}
    if rest
        .next_if(|token| is_one(token, &["table", "view", "sequence"]))
        .is_none()
    {
        return Vec::new();
    }
    while rest.next_if(|token| is_one(token, &BEFORE_NAME)).is_some() {}
    let mut names = Vec::new();
    while let Some((token, name)) = rest.next().and_then(|token| Some((token, token.name()?))) {
        match rest.next_if(|next| next.text == ".") {
            Some(_) => drop(rest.next()),
            None => names.push((name, token.text.to_owned())),
        }
        if rest.next_if(|next| next.text == ",").is_none() {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::Plan;

    fn changed_by(sql: &str) -> Vec<String> {
        changed(&Plan::of_sql(sql).steps)
    }

    #[test]
    fn what_is_changed_by_a_bare_name_is_seen() {
        for (sql, expected) in [
            (
                "alter table a add x int; alter table only A drop x",
                vec!["a", "A"],
            ),
            (
                r#"drop table if exists a, b.c, "D e" cascade"#,
                vec!["a", "\"D e\""],
            ),
            (
                "drop materialized view v; alter sequence s restart; alter view w rename to x",
                vec!["v", "s", "w"],
            ),
            ("create table a (x int); alter table a add y int", vec![]),
            (
                "create unlogged table if not exists a (x int); drop table a",
                vec![],
            ),
            ("alter table a rename to b; alter table b add x int", vec!["a"]),
            (
                "alter table a rename column x to y; create index i on b (c); drop index i",
                vec!["a"],
            ),
            (
                "insert into a values ('drop table b'); comment on table c is ''",
                vec![],
            ),
        ] {
            assert_eq!(changed_by(sql), expected, "{sql}");
        }
    }

    #[test]
    fn only_schemas_behind_the_tenant_s_can_lead_astray() {
        let behind = |sql: &str| behind(&Plan::of_sql(sql).steps);
        assert_eq!(
            behind(r#"set local search_path to "Herder:Tenant", public, "Ext 1""#),
            ["public", "Ext 1"]
        );
        assert_eq!(behind(r#"SET search_path = 'Herder:Tenant'; select 1"#), [""; 0]);
        let called = r#"select set_config('search_path', '"Herder:Tenant", public', true)"#;
        assert_eq!(behind(called), ["public"]);
        assert_eq!(behind("alter table a add x int"), [""; 0]);
    }

    #[test]
    fn a_plan_that_cannot_stray_asks_for_its_ledger_alone() {
        let before = BTreeSet::from(["r1".to_owned()]);
        let quick = |sql: &str| quick(&Plan::of_sql(sql).steps, &before, "v").expect("a ledger");
        let alone = quick("alter table a add x int");
        assert!(!alone.contains("to_regclass"), "{alone}");
        let strays = quick(r#"set search_path to "Herder:Tenant", public; alter table a add x int"#);
        assert!(
            strays.starts_with(&alone) && strays.contains(r#"to_regclass('"public".a')"#),
            "{strays}"
        );
    }
}

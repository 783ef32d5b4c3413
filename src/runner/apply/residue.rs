//! What a plan may leave in its session that nothing takes back: neither RESET nor DISCARD.
//!
//! A setting with a dot in its name (`app.region`) is there until the session ends, once anybody has set it, if only
//! for a transaction: `current_setting('app.region', true)` is '' from then on, and was NULL before. So are a connection of
//! dblink's, a library that was loaded, and what a function in PL/Perl or PL/Python keeps for itself. The server lists
//! none of them, so the plan's own words decide. In doubt they say yes: that costs a new connection for the next tenant.

use crate::{
    domain::plan::{Plan, SCHEMA},
    runner::statement::{Token, Words, statements, tokens},
};

/// Words that such a thing is done with, or their beginnings.
const WORDS: [&str; 6] = ["set_config", "dblink", "plperl", "plpython", "pltcl", "plv8"];

/// What may stand before a bracket in a query without being a function that does anything else than answer.
const HARMLESS: [&str; 21] = [
    "and",
    "as",
    "coalesce",
    "count",
    "current_database",
    "current_schema",
    "current_setting",
    "exists",
    "from",
    "hashtext",
    "in",
    "max",
    "min",
    "nextval",
    "not",
    "now",
    "or",
    "select",
    "setval",
    "values",
    "where",
];

/// What SQL that is put together while a migration runs may begin with and leave nothing behind.
const COMMANDS: [&str; 10] = [
    "alter", "analyze", "comment", "create", "delete", "drop", "grant", "insert", "revoke", "update",
];

/// Whether a plan may leave something in its session that no SQL takes back. What a trigger does, or a function that was there
/// before the plan and that other statements than a query of its own call, is not seen.
pub(crate) fn leaves_residue(plan: &Plan) -> bool {
    let mut texts = plan.steps.iter().flat_map(|step| step.form.statements());
    texts.any(|text| speaks_of_it(text) || statements(text).any(|statement| calls_others(&tokens(statement))))
}

/// Whether a text names such a thing, be it in a body or in a string that is run.
fn speaks_of_it(text: &str) -> bool {
    let tokens = tokens(text);
    let named = |token: &Token<'_>| {
        let name = token.name().unwrap_or_default().to_ascii_lowercase();
        WORDS.iter().any(|word| name.starts_with(word))
    };
    let sets = |rest: &[Token<'_>]| match rest {
        [set, scope, name, dot, ..] if scope.is("local") || scope.is("session") => {
            set.is("set") && has_dot(name, dot)
        }
        [set, name, dot, ..] => set.is("set") && has_dot(name, dot),
        _ => false,
    };
    tokens.iter().any(named)
        || (0..tokens.len()).any(|at| sets(&tokens[at..]) || shares_function(&tokens[at..]))
        || tokens.iter().filter_map(Token::inside).any(speaks_of_it)
}

/// Whether a function is made in a schema that it names, or put into one. A session compiles it for the first tenant that calls
/// it (`TenantSession::mixes_types`), and other sessions were looked at before.
fn shares_function(tokens: &[Token<'_>]) -> bool {
    let routine = |token: &Token<'_>| token.is_any(&["function", "procedure"]);
    let made = |token: &Token<'_>| token.is_any(&["create", "replace"]);
    match tokens {
        [verb, what, schema, dot, ..] if made(verb) && routine(what) => {
            dot.text == "." && schema.name().is_some_and(|name| name != SCHEMA)
        }
        [alter, what, rest @ ..] if alter.is("alter") && (routine(what) || what.is("routine")) => {
            let statement = rest.split(|token| token.text == ";").next().unwrap_or_default();
            statement
                .windows(2)
                .any(|pair| pair[0].is("set") && pair[1].is("schema"))
        }
        _ => false,
    }
}

fn has_dot(name: &Token<'_>, behind: &Token<'_>) -> bool {
    name.name()
        .is_some_and(|name| name.contains('.') || behind.text == ".")
}

/// Whether a statement loads a library, or is there to call a function that may do anything.
fn calls_others(statement: &[Token<'_>]) -> bool {
    let performs = |body: &str| {
        let body = tokens(body);
        (0..body.len()).any(|at| {
            body.is_any(at, &["perform", "call"]) && calls_other_than_harmless(&body[at + 1..])
                || body.is(at, "execute") && !begins_harmlessly(&body[at + 1..])
        })
    };
    statement.is_any(0, &["load", "call", "execute"])
        || statement.is_any(0, &["select", "with", "table"]) && calls_other_than_harmless(statement)
        || statement.is(0, "do") && statement.iter().filter_map(Token::inside).any(performs)
}

/// Whether what a body executes begins with a literal that says which command it is: `format('alter table %I …', …)`.
fn begins_harmlessly(executed: &[Token<'_>]) -> bool {
    let text = match executed {
        [format, open, text, ..] if format.is("format") && open.text == "(" => text,
        [text, ..] => text,
        [] => return false,
    };
    let begin = text.inside().map(tokens).unwrap_or_default();
    begin.is_any(0, &COMMANDS)
}

fn calls_other_than_harmless(tokens: &[Token<'_>]) -> bool {
    tokens.windows(2).any(|pair| {
        let name = pair[0].name().unwrap_or_default();
        let is_harmless = name.is_empty() || name.starts_with("pg_") || HARMLESS.contains(&name.as_str());
        pair[1].text == "(" && !is_harmless
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(sql: &str) -> bool {
        leaves_residue(&Plan::of_sql(sql))
    }

    #[test]
    fn what_outlasts_a_session_s_reset_is_seen_wherever_it_stands() {
        for sql in [
            "create table a (); SET LOCAL app.region = 'eu'",
            "set /* */ \"app\" . region to 'eu'",
            "set session \"app.region\" = 'eu'",
            "insert into a select pg_catalog.Set_Config('app.region', 'eu', true)",
            "do $$ begin execute 'set local app.region = ''eu'''; end $$",
            "create function f() returns int language sql set app.region = 'eu' as 'select 1'",
            "create function f() returns int language plpython3u as $$ GD['a'] = 1 $$",
            "select public.dblink_connect('src', 'dbname=a')",
            "load 'auto_explain'",
            "call fill()",
            "select enter_tenant('a')",
            "do $$ begin perform enter_tenant('a'); end $$",
            "do $$ begin execute format('set local %I = %L', 'app.region', 'eu'); end $$",
            "do $$ begin execute 'set app' || '.x = 1'; end $$",
            "do $$ declare q text := 'reset x'; begin execute q; end $$",
            "do $$ begin execute 'select enter_tenant()'; end $$",
            "create or replace function shared.f() returns int language plpgsql as 'begin return 1; end'",
            "do $$ begin execute 'create procedure \"Shared\".p() language sql as ''select 1'''; end $$",
            "create function f() returns int language sql as 'select 1'; alter function f() set schema shared",
        ] {
            assert!(leaves(sql), "{sql}");
        }
        for sql in [
            "create table a (id int primary key, b text default 'set app.x'); alter table s.a add c int",
            "set local lock_timeout = '1s'; update s.a set b = c.d from c where c.id in (1, 2)",
            "select pg_advisory_xact_lock_shared(1); select setval('s', (select max(id) from a))",
            "do $$ begin if not exists (select from a) then create type t as enum ('a'); end if; end $$",
            "do $$ begin execute format('alter table %I add c int', 'a'); execute 'drop table ' || 'a'; end $$",
            "create function f() returns int language sql as 'select 1'; alter table f set schema shared",
            "create function \"Herder:Tenant\".f() returns int language sql as 'select 1'",
        ] {
            assert_eq!(leaves(sql), sql.contains("'set app.x'"), "{sql}");
        }
    }
}

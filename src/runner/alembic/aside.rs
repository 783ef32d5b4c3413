//! What an env.py may say besides its revisions though a plan does not: what a plan has its own word for, or what changes nothing and
//! gives every tenant the same answer, today and tomorrow. What env.py makes of an answer, nobody sees. That it is neither is
//! assumed of all that is not listed here.

use crate::runner::{
    kind::OF_TRANSACTIONS,
    statement::{Token, Words, tokens},
};

/// Settings that a plan has already, or that say only how long something may take. The proof compares those that matter.
const SETTINGS: [&str; 5] = [
    "search_path",
    "application_name",
    "timezone",
    "datestyle",
    "client_encoding",
];

/// Functions that change nothing but locks of the session's own, and whose result is the same for all tenants. Whoever looks into a
/// catalog is none of them.
const FUNCTIONS: [&str; 25] = [
    "array_agg",
    "bool_or",
    "coalesce",
    "concat",
    "count",
    "current_database",
    "current_schema",
    "current_schemas",
    "format",
    "hashtext",
    "hashtextextended",
    "lower",
    "max",
    "min",
    "now",
    "nullif",
    "pg_backend_pid",
    "pg_is_in_recovery",
    "pg_sleep",
    "quote_ident",
    "quote_literal",
    "string_agg",
    "to_regnamespace",
    "upper",
    "version",
];

/// Keywords that may stand before a bracket.
const KEYWORDS: [&str; 14] = [
    "all", "and", "any", "else", "exists", "from", "in", "join", "not", "on", "or", "select", "then", "where",
];

/// Keywords that may stand before a text. Any other name there is a type.
const BEFORE_TEXT: [&str; 10] = [
    "and", "by", "else", "ilike", "like", "or", "select", "then", "when", "where",
];

/// Keywords of queries that write, lock rows, or read what is not looked for here; and what a tenant's schema has of its own.
const NEVER: [&str; 11] = [
    "for",
    "into",
    "lateral",
    "nspacl",
    "nspowner",
    "only",
    "operator",
    "schema_owner",
    "table",
    "values",
    "with",
];

/// Types of PostgreSQL's that a value may be made one of.
const TYPES: [&str; 11] = [
    "bigint", "bool", "boolean", "int", "int4", "int8", "integer", "name", "oid", "text", "varchar",
];

/// Whether a statement is such a one. `texts` are those among the values that are sent beside it, `schema` is the tenant's, `ledger` its
/// version table.
pub(super) fn is_aside(statement: &str, texts: &[String], schema: Option<&str>, ledger: &str) -> bool {
    let tokens = tokens(statement);
    let first = tokens.first().and_then(Token::name).unwrap_or_default();
    match first.as_str() {
        "set" | "reset" => {
            let at = 1 + usize::from(tokens.is_any(1, &["local", "session"]));
            let is_zone = tokens.is(at, "time") && tokens.is(at + 1, "zone");
            let name = tokens.get(at).and_then(Token::name).unwrap_or_default();
            let is_whole = tokens.get(at + 1).is_none_or(|token| token.text != ".");
            is_zone || is_whole && is_setting(&name)
        }
        word if OF_TRANSACTIONS.contains(&word) => !tokens.is(1, "prepared"),
        // A setting with a dot is anybody's, and may be another in each database.
        "show" => tokens.iter().all(|token| !names_own_setting(token.text)),
        "create" => {
            let names: Vec<_> = tokens.iter().map(Token::name).collect();
            let own = schema.map(str::to_owned);
            let made = ["create", "schema", "if", "not", "exists"].map(|word| Some(word.to_owned()));
            own.is_some() && names.len() == 6 && names[..5] == made && names[5] == own
        }
        "select" => Query {
            tokens: &tokens,
            texts,
            schema,
            ledger,
        }
        .changes_nothing(),
        _ => false,
    }
}

fn is_setting(name: &str) -> bool {
    SETTINGS.contains(&name) || name.ends_with("_timeout")
}

fn names_own_setting(text: &str) -> bool {
    text.contains('.')
}

/// A SELECT.
struct Query<'a> {
    tokens: &'a [Token<'a>],
    texts: &'a [String],
    schema: Option<&'a str>,
    ledger: &'a str,
}

impl Query<'_> {
    /// Whether it only looks, and at nothing in which a tenant differs from a scratch one: its ledger, and whether its schema is there.
    fn changes_nothing(&self) -> bool {
        let from = self.tokens.iter().position(|token| token.is("from"));
        // A comma behind a table would bring another one.
        let has_list = from.is_some_and(|from| self.tokens[from..].iter().any(|token| token.text == ","));
        !has_list
            && (0..self.tokens.len()).all(|at| self.is_harmless(at))
            && (!self.looks_for_schemas() || self.names_only_own())
    }

    /// Whether it asks which schemas there are.
    fn looks_for_schemas(&self) -> bool {
        const NAMES: [&str; 3] = ["pg_namespace", "schemata", "to_regnamespace"];
        (0..self.tokens.len()).any(|at| NAMES.contains(&self.name(at).as_str()))
    }

    /// Whether no text in it is about another schema than the tenant's: what is not there today may be tomorrow.
    fn names_only_own(&self) -> bool {
        let literals = self.tokens.iter().filter(|token| token.is_text());
        let mut literals = literals.map(|token| token.string().unwrap_or_default());
        let is_own = |text: &str| Some(text.trim_matches('"')) == self.schema;
        self.schema.is_some()
            && literals.all(|text| is_own(&text))
            && self.texts.iter().all(|text| is_own(text))
    }

    fn is_harmless(&self, at: usize) -> bool {
        let token = &self.tokens[at];
        let (before, behind) = (
            at.checked_sub(1).map_or("", |at| self.text(at)),
            self.text(at + 1),
        );
        let Some(name) = token.name() else {
            return match token.text {
                "(" | ")" | "," | "." | "*" => true,
                "=" | "<" | ">" | "!" => match (before, token.text) {
                    ("<", ">" | "=") | (">" | "!", "=") => true,
                    _ => !["=", "<", ">", "!"].contains(&before),
                },
                ":" if before == ":" => self.tokens.is_any(at + 1, &TYPES),
                ":" => behind == ":" && self.text(at + 2) != ":",
                // A parameter.
                "%" => behind == "(" || behind == "s",
                "$" => behind.starts_with(|c: char| c.is_ascii_digit()),
                _ if token.is_text() => {
                    let is_typed = at > 0 && self.tokens[at - 1].name().is_some();
                    !is_typed || self.tokens.is_any(at - 1, &BEFORE_TEXT)
                }
                number => number.starts_with(|c: char| c.is_ascii_digit()),
            };
        };
        if token.is_any(&NEVER) {
            return false;
        }
        let reads = token.is("from") || token.is("join");
        (behind != "(" || self.may_be_called(at, &name)) && (!reads || self.may_be_read(at + 1))
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn name(&self, at: usize) -> String {
        self.tokens.get(at).and_then(Token::name).unwrap_or_default()
    }

    /// Whether a name before a bracket is that of a function that changes nothing.
    fn may_be_called(&self, at: usize, name: &str) -> bool {
        if at > 0 && self.text(at - 1) == "." {
            let is_servers =
                at > 1 && self.name(at - 2) == "pg_catalog" && (at == 2 || self.text(at - 3) != ".");
            return is_servers && self.is_function(at, name);
        }
        self.tokens.is_any(at, &KEYWORDS) || self.is_function(at, name)
    }

    fn is_function(&self, at: usize, name: &str) -> bool {
        let setting = || self.tokens.get(at + 2).and_then(Token::string);
        let sets = || {
            self.text(at + 3) == "," && setting().is_some_and(|name| is_setting(&name.to_ascii_lowercase()))
        };
        let asks = || {
            [",", ")"].contains(&self.text(at + 3)) && setting().is_some_and(|name| !names_own_setting(&name))
        };
        FUNCTIONS.contains(&name)
            || name.starts_with("pg_advisory_")
            || name.starts_with("pg_try_advisory_")
            || name == "set_config" && sets()
            || name == "current_setting" && asks()
    }

    /// Whether a scratch tenant finds there what any other one does.
    fn may_be_read(&self, at: usize) -> bool {
        if self.text(at) == "(" {
            return self.tokens.is_any(at + 1, &["select"]);
        }
        let first = self.name(at);
        if self.text(at + 1) != "." {
            return first == self.ledger || first == "pg_namespace";
        }
        let second = self.name(at + 2);
        match first.as_str() {
            "information_schema" => second == "schemata",
            "pg_catalog" => second == "pg_namespace",
            other => second == self.ledger && self.schema.is_none_or(|own| own == other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(statement: &str) -> bool {
        is_aside(statement, &["t_1".into()], Some("t_1"), "alembic_version")
    }

    #[test]
    fn what_a_plan_need_not_say() {
        for statement in [
            "SET search_path TO \"t_1\", public",
            "set local statement_timeout = '1s'",
            "SET TIME ZONE 'UTC'",
            "reset application_name",
            "BEGIN",
            "rollback to savepoint s",
            "show server_version",
            "CREATE SCHEMA IF NOT EXISTS t_1",
            "/* hi */ select 1",
            "SELECT pg_advisory_xact_lock(%(key)s::BIGINT)",
            "SELECT pg_catalog.set_config('search_path', $1::VARCHAR, false), set_config('lock_timeout', '1', true)",
            "select exists(select 1 from information_schema.schemata where schema_name = $1::VARCHAR)",
            "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname = 't_1'",
            "SELECT to_regnamespace('\"t_1\"') IS NULL",
            "SELECT max(version_num) FROM t_1.alembic_version",
            "SELECT current_setting('server_version_num')::int, current_user",
        ] {
            assert!(is(statement), "{statement}");
        }
    }

    #[test]
    fn whatever_else_there_is() {
        for statement in [
            "SET app.tenant = 'acme'",
            "SET app.my_timeout = 1",
            "SET lock_timeout.x = 1",
            "SET ROLE x",
            "SET SESSION AUTHORIZATION x",
            "RESET ALL",
            "COMMIT PREPARED 'x'",
            "CREATE SCHEMA IF NOT EXISTS audit",
            "CREATE SCHEMA IF NOT EXISTS t_1 AUTHORIZATION x",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) AS y",
            "select tidy()",
            "select \"tidy\" /* hidden */ ()",
            "select pg_catalog.tidy()",
            "select t_1.count()",
            "select a.pg_catalog.count()",
            "SELECT U&\"ti\\0064y\"()",
            "select set_config('app.tenant', 'x', false)",
            "select set_config('search_path', 'x', false), set_config('app.tenant', 'x', false)",
            "select set_config(%s, 'x', false)",
            "select set_config('search_path' || 'x', 'y', false)",
            "select nextval('s')",
            "select lo_create(0)",
            "select query_to_xml('delete from t', true, true, '')",
            "select 1 into u",
            "select v from pg_class for update",
            "select count(*) from t",
            "select count(*) from \"t\"",
            "select 1 from pg_class, t",
            "select 1 from pg_class join t on true",
            "select count(*) from t_1.t",
            "select n_live_tup from pg_stat_user_tables",
            // Another answer in each tenant, or tomorrow.
            "select name from public.flags",
            "select version_num from shared.alembic_version",
            "select plan from shared.tenants where id = 't_1'",
            "select to_regclass('legacy')",
            "select 'legacy'::regclass",
            "select has_table_privilege('t', 'select')",
            "select pg_get_userbyid(10)",
            "select relname from pg_class",
            "select 1 from pg_catalog.pg_extension",
            "select 1 from information_schema.tables where table_schema = 't_1'",
            "select 1 from information_schema.schemata where schema_name = 'audit'",
            "select nspowner from pg_namespace where nspname = 't_1'",
            "select to_regnamespace('audit')",
            "select current_setting('app.flag', true)",
            "select current_setting(%(name)s)",
            "show app.flag",
            "show \"app.flag\"",
            "select 1 === 2",
            "select 1 operator(t_1.=) 2",
            "select 'x'::mood",
            "select mood 'x'",
            "select cast('x' as mood)",
            "values (tidy())",
            "table t",
            "call tidy()",
            "do $$ begin perform tidy(); end $$",
            "execute p",
            "prepare p as select tidy()",
            "explain analyze select tidy()",
            "copy t from stdin",
            "lock table t",
            "update alembic_version set version_num = 'x'",
            "",
        ] {
            assert!(!is(statement), "{statement}");
        }
        // There, all schemas are the tenant's.
        for statement in [
            "select version from shared.fleet",
            "select nspname from pg_namespace",
            "create schema if not exists audit",
        ] {
            assert!(!is_aside(statement, &[], None, "alembic_version"), "{statement}");
        }
        let exists = "select 1 from information_schema.schemata where schema_name = %(name)s";
        assert!(!is_aside(
            exists,
            &["audit".into()],
            Some("t_1"),
            "alembic_version"
        ));
    }
}

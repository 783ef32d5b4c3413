//! What an env.py may say besides its revisions though a plan does not: what a plan has its own word for, or what changes nothing. That
//! it is neither is assumed of all that is not listed here.

use crate::runner::statement::{Token, tokens};

/// Settings that a plan has already, or that say only how long something may take. The proof compares those that matter.
const SETTINGS: [&str; 5] = [
    "search_path",
    "application_name",
    "timezone",
    "datestyle",
    "client_encoding",
];

/// Functions that change nothing but locks of the session's own, and whose result is the same for all tenants.
const FUNCTIONS: [&str; 34] = [
    "array_agg",
    "bool_or",
    "coalesce",
    "concat",
    "count",
    "current_database",
    "current_schema",
    "current_schemas",
    "current_setting",
    "format",
    "has_database_privilege",
    "has_schema_privilege",
    "has_table_privilege",
    "hashtext",
    "hashtextextended",
    "lower",
    "max",
    "min",
    "now",
    "nullif",
    "pg_backend_pid",
    "pg_get_userbyid",
    "pg_is_in_recovery",
    "pg_sleep",
    "quote_ident",
    "quote_literal",
    "string_agg",
    "to_regclass",
    "to_regnamespace",
    "to_regproc",
    "to_regrole",
    "to_regtype",
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

/// Keywords of queries that write, lock rows, or read what is not looked for here.
const NEVER: [&str; 8] = [
    "for", "into", "lateral", "only", "operator", "table", "values", "with",
];

/// Tables of PostgreSQL's that are the same in two schemas at the same revision.
const CATALOGS: [&str; 18] = [
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_database",
    "pg_description",
    "pg_enum",
    "pg_extension",
    "pg_index",
    "pg_indexes",
    "pg_matviews",
    "pg_namespace",
    "pg_proc",
    "pg_roles",
    "pg_settings",
    "pg_tables",
    "pg_trigger",
    "pg_type",
    "pg_views",
];

/// Types of PostgreSQL's that a value may be made one of.
const TYPES: [&str; 14] = [
    "bigint",
    "bool",
    "boolean",
    "int",
    "int4",
    "int8",
    "integer",
    "name",
    "oid",
    "regclass",
    "regnamespace",
    "regtype",
    "text",
    "varchar",
];

/// Whether a statement is such a one. `schema` is the tenant's, `ledger` its version table.
pub(super) fn is_aside(statement: &str, schema: Option<&str>, ledger: &str) -> bool {
    let tokens = tokens(statement);
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let first = tokens.first().and_then(Token::name).unwrap_or_default();
    match first.as_str() {
        "set" | "reset" => {
            let at = 1 + usize::from(is(1, "local") || is(1, "session"));
            let is_zone = is(at, "time") && is(at + 1, "zone");
            let name = tokens.get(at).and_then(Token::name).unwrap_or_default();
            let is_whole = tokens.get(at + 1).is_none_or(|token| token.text != ".");
            is_zone || is_whole && is_setting(&name)
        }
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            !is(1, "prepared")
        }
        "show" => true,
        "create" => {
            let names: Vec<_> = tokens.iter().map(Token::name).collect();
            let own = schema.map(str::to_owned);
            let made = ["create", "schema", "if", "not", "exists"].map(|word| Some(word.to_owned()));
            own.is_some() && names.len() == 6 && names[..5] == made && names[5] == own
        }
        "select" => Query {
            tokens: &tokens,
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

/// A SELECT.
struct Query<'a> {
    tokens: &'a [Token<'a>],
    schema: Option<&'a str>,
    ledger: &'a str,
}

impl Query<'_> {
    /// Whether it only looks, and at nothing in which a tenant differs from a scratch one: at no rows of its own.
    fn changes_nothing(&self) -> bool {
        let from = self.tokens.iter().position(|token| token.is("from"));
        // A comma behind a table would bring another one.
        let has_list = from.is_some_and(|from| self.tokens[from..].iter().any(|token| token.text == ","));
        !has_list && (0..self.tokens.len()).all(|at| self.is_harmless(at))
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
                ":" if before == ":" => self.is_any(at + 1, &TYPES),
                ":" => behind == ":" && self.text(at + 2) != ":",
                // A parameter.
                "%" => behind == "(" || behind == "s",
                "$" => behind.starts_with(|c: char| c.is_ascii_digit()),
                _ if token.is_text() => {
                    let is_typed = at > 0 && self.tokens[at - 1].name().is_some();
                    !is_typed || self.is_any(at - 1, &BEFORE_TEXT)
                }
                number => number.starts_with(|c: char| c.is_ascii_digit()),
            };
        };
        if NEVER.iter().any(|word| token.is(word)) {
            return false;
        }
        let reads = token.is("from") || token.is("join");
        (behind != "(" || self.may_be_called(at, &name)) && (!reads || self.may_be_read(at + 1))
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn is_any(&self, at: usize, words: &[&str]) -> bool {
        words
            .iter()
            .any(|word| self.tokens[at..].first().is_some_and(|token| token.is(word)))
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
        self.is_any(at, &KEYWORDS) || self.is_function(at, name)
    }

    fn is_function(&self, at: usize, name: &str) -> bool {
        let sets = || {
            let setting = self.tokens.get(at + 2).and_then(Token::string);
            self.text(at + 3) == "," && setting.is_some_and(|name| is_setting(&name.to_ascii_lowercase()))
        };
        FUNCTIONS.contains(&name)
            || name.starts_with("pg_advisory_")
            || name.starts_with("pg_try_advisory_")
            || name == "set_config" && sets()
    }

    /// Whether a scratch tenant finds there what any other one does.
    fn may_be_read(&self, at: usize) -> bool {
        if self.text(at) == "(" {
            return self.is_any(at + 1, &["select"]);
        }
        let first = self.name(at);
        if self.text(at + 1) != "." {
            return first == self.ledger || CATALOGS.contains(&first.as_str());
        }
        let second = self.name(at + 2);
        match (first.as_str(), self.schema) {
            ("information_schema", _) => true,
            ("pg_catalog", _) => CATALOGS.contains(&second.as_str()),
            (other, Some(own)) if other != own => self.is_same_for_all(own),
            _ => second == self.ledger,
        }
    }

    /// Whether a query of a shared table asks for nothing by a tenant's name, and calls no function as if it were a column.
    fn is_same_for_all(&self, own: &str) -> bool {
        let dots = self.tokens.iter().filter(|token| token.text == ".").count();
        let mentions = |token: &Token<'_>| ["%", "$"].contains(&token.text) || token.text.contains(own);
        dots == 1 && !self.tokens.iter().any(mentions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(statement: &str) -> bool {
        is_aside(statement, Some("t_1"), "alembic_version")
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
            "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_namespace n ON (n.oid = c.relnamespace) WHERE n.nspname <> 'x'",
            "SELECT to_regclass('t_1.t') IS NOT NULL",
            "SELECT max(version_num) FROM t_1.alembic_version",
            "SELECT version FROM shared.fleet WHERE id >= 3",
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
            "select plan from shared.tenants where id = %(id)s",
            "select plan from shared.tenants where id = 't_1'",
            "select fleet.note from shared.fleet",
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
        assert!(!is_aside(
            "select version from shared.fleet",
            None,
            "alembic_version"
        ));
        assert!(!is_aside(
            "create schema if not exists audit",
            None,
            "alembic_version"
        ));
    }
}

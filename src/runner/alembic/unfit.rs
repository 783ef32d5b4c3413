//! What keeps a plan away from a tenant besides where its ledger stands: then Alembic itself says what is wrong there.
//!
//! A name without a schema means the tenant's own table where it has one, and where it has none, another schema's that env.py has in
//! its search_path. And a ledger with the same row twice is one that Alembic refuses.

use std::collections::{BTreeSet, HashSet};

use crate::{
    domain::plan::{PlanStep, SCHEMA},
    runner::{
        apply::{UNFIT, array, block, raise},
        statement::{Token, Words, statements, tokens},
    },
    session::{literal, quote},
};

/// What a plan is asked about.
pub(super) struct Asked<'a> {
    /// Its steps.
    pub(super) steps: &'a [PlanStep],
    /// The ledger's rows before them.
    pub(super) before: &'a BTreeSet<String>,
    /// The ledger's table.
    pub(super) table: &'a str,
    /// Whether its tenants are schemas. A database has nobody else's tables in it.
    pub(super) by_schema: bool,
}

impl Asked<'_> {
    /// The plan's [`check`](crate::domain::plan::Plan::check).
    pub(super) fn check(&self) -> String {
        let table = quote(self.table).replace('%', "%%");
        let schema = "pg_catalog.current_schema()";
        let mut body = format!(
            "if pg_catalog.to_regclass(pg_catalog.format({0}, {schema})) is not null then \
               execute pg_catalog.format({1}, {schema}) into herder_rows; \
               herder_rows := coalesce(herder_rows, '{{}}'); \
               herder_odd := (select version from pg_catalog.unnest(herder_rows) as version group by version having count(*) > 1 limit 1); \
               if herder_odd is not null then {2}; end if; \
             end if; ",
            literal(&format!("%I.{table}")),
            literal(&format!("select {} from %I.{table}", rows())),
            raise(
                UNFIT,
                "a row of the ledger is there twice",
                "pg_catalog.concat('a place where its ledger has ', herder_odd, ' more than once')"
            ),
        );
        let names: String = self
            .strayed()
            .map(|Strayed { name, is_home }| {
                let at = literal(&format!(
                    "a place where it has no {name}, and another schema has one"
                ));
                let refuse = raise(UNFIT, "a name means another schema's", &at);
                format!("if not {is_home} then {refuse}; end if; ")
            })
            .collect();
        if !names.is_empty() {
            // Behind its first revision, a plan may have dropped or renamed what it began with.
            body += &format!("if herder_rows = {} then {names}end if;", array(self.before));
        }
        block(
            "herder_odd pg_catalog.text; herder_rows pg_catalog.text[] := '{}';",
            &body,
        )
    }

    /// The plan's [`quick`](crate::domain::plan::Plan::quick) to that.
    pub(super) fn quick(&self) -> Option<String> {
        let ledger = format!("{}.{}", quote(SCHEMA), quote(self.table));
        // A ledger without rows is nearly always none at all: then there is nothing to ask it.
        let is_exactly = (!self.before.is_empty())
            .then(|| format!("(select {} from {ledger}) = {}", rows(), array(self.before)));
        let conditions: Vec<String> = is_exactly
            .into_iter()
            .chain(self.strayed().map(|strayed| strayed.is_home))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" and "))
    }

    fn strayed(&self) -> impl Iterator<Item = Strayed> {
        let behind = if self.by_schema {
            behind(self.steps)
        } else {
            Vec::new()
        };
        let names = if behind.is_empty() {
            Vec::new()
        } else {
            changed(self.steps)
        };
        let schemas: Vec<String> = behind.iter().map(|schema| literal(schema)).collect();
        names.into_iter().map(move |name| Strayed {
            // A schema that this role may not use is passed over in the path.
            is_home: format!(
                "(pg_catalog.to_regclass(pg_catalog.concat(pg_catalog.quote_ident(pg_catalog.current_schema()), {own})) is not null \
                 or not exists (select from pg_catalog.pg_class join pg_catalog.pg_namespace as n on n.oid = relnamespace \
                                where relname = {called} and nspname in ({schemas}) \
                                and pg_catalog.has_schema_privilege(n.oid, 'usage')))",
                own = literal(&format!(".{}", name.written)),
                called = literal(&name.called),
                schemas = schemas.join(", "),
            ),
            name: name.written,
        })
    }
}

/// A name that may lead a plan to another schema.
struct Strayed {
    name: String,
    /// A condition that is true where the tenant has such a thing, or nobody else has.
    is_home: String,
}

/// The rows of Alembic's ledger.
fn rows() -> &'static str {
    "pg_catalog.array_agg(version_num::pg_catalog.text order by version_num::pg_catalog.text collate \"C\")"
}

/// The schemas behind the tenant's in the search_path that the steps begin with.
fn behind(steps: &[PlanStep]) -> Vec<String> {
    const NOBODYS: [&str; 4] = [SCHEMA, "$user", "pg_catalog", "pg_temp"];
    let mut behind = Vec::new();
    for text in steps.iter().flat_map(|step| step.form.statements()) {
        for statement in statements(text) {
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
    let named = |token: &Token<'_>| token.name().or_else(|| token.string());
    let local = 1 + usize::from(tokens.is_any(1, &["local", "session"]));
    if tokens.is(0, "set") && tokens.is(local, "search_path") {
        return tokens.iter().skip(local + 2).filter_map(named).collect();
    }
    let called = tokens
        .iter()
        .position(|token| tokens.is(0, "select") && token.string().as_deref() == Some("search_path"));
    let value = called.and_then(|at| tokens.get(at + 2)?.string());
    let schemas = value.iter().flat_map(|value| value.split(','));
    schemas
        .map(|schema| schema.trim().trim_matches('"').to_owned())
        .collect()
}

/// A name, as it is kept and as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    called: String,
    written: String,
}

/// The tables, views and sequences that the steps alter or drop by a name without a schema. Not those that they have made themselves
/// by then; nor those that a piece of a revision drops or renames, which leaves the ledger where it was.
fn changed(steps: &[PlanStep]) -> Vec<Name> {
    let (mut made, mut gone, mut changed) = (HashSet::new(), HashSet::new(), Vec::<Name>::new());
    for step in steps {
        for statement in step.form.statements().flat_map(statements) {
            let tokens = tokens(statement);
            let renamed = tokens.windows(3).find(|t| t[0].is("rename") && t[1].is("to"));
            for name in bare_names(&tokens) {
                if step.before == step.after && (tokens.is(0, "drop") || renamed.is_some()) {
                    gone.insert(name.called.clone());
                }
                if tokens.is(0, "create") {
                    made.insert(name.called);
                } else if !made.contains(&name.called) && !changed.contains(&name) {
                    changed.push(name);
                }
            }
            made.extend(renamed.and_then(|t| t[2].name()));
        }
    }
    changed.retain(|name| !gone.contains(&name.called));
    changed
}

/// What a statement makes, alters or drops by a name without a schema.
fn bare_names(tokens: &[Token<'_>]) -> Vec<Name> {
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
    let mut rest = tokens.iter().peekable();
    if rest
        .next_if(|first| first.is_any(&["create", "alter", "drop"]))
        .is_none()
    {
        return Vec::new();
    }
    while rest.next_if(|token| token.is_any(&BEFORE_KIND)).is_some() {}
    if rest
        .next_if(|token| token.is_any(&["table", "view", "sequence"]))
        .is_none()
    {
        return Vec::new();
    }
    while rest.next_if(|token| token.is_any(&BEFORE_NAME)).is_some() {}
    let mut names = Vec::new();
    while let Some((token, called)) = rest.next().and_then(|token| Some((token, token.name()?))) {
        match rest.next_if(|next| next.text == ".") {
            Some(_) => drop(rest.next()),
            None => names.push(Name {
                called,
                written: token.text.to_owned(),
            }),
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

    fn changed_by(plan: &Plan) -> Vec<String> {
        changed(&plan.steps)
            .into_iter()
            .map(|name| name.written)
            .collect()
    }

    /// One that moves the ledger.
    fn whole(sql: &str) -> Plan {
        let mut plan = Plan::of_sql(sql);
        plan.steps[0].after.insert("r2".into());
        plan
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
            assert_eq!(changed_by(&whole(sql)), expected, "{sql}");
        }
        // A piece of a revision that is done, and found again by whoever goes on with it.
        let torn = Plan::of_sql("alter table a rename to b; drop table c; alter table d add x int");
        assert_eq!(changed_by(&torn), ["d"]);
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
        let quick = |sql: &str, before: &[&str], by_schema: bool| {
            let before = before.iter().map(|row| (*row).to_owned()).collect();
            let plan = whole(sql);
            let asked = Asked {
                steps: &plan.steps,
                before: &before,
                table: "v",
                by_schema,
            };
            asked.quick()
        };
        let strays = r#"set search_path to "Herder:Tenant", public; alter table A add x int"#;
        let alone = quick("alter table a add x int", &["r1"], true).expect("a ledger");
        assert!(!alone.contains("to_regclass"), "{alone}");
        assert_eq!(quick(strays, &["r1"], false).as_deref(), Some(alone.as_str()));
        let both = quick(strays, &["r1"], true).expect("a ledger and a name");
        assert!(
            both.starts_with(&alone) && both.contains("relname = 'a' and nspname in ('public')"),
            "{both}"
        );
        assert_eq!(quick("select 1", &[], true), None);
        assert!(quick(strays, &[], true).is_some_and(|quick| both.ends_with(&quick)));
    }
}

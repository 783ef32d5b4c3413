//! What stands around a step: all that makes its transaction safe by itself. Text only: nothing here asks the server.

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    Order,
    place::placed,
    refusal::{LOCKED, MOVED, NO_SCHEMA, WANDERED, block, expect, raise, unended},
};
use crate::{
    domain::plan::PlanStep,
    session::{LedgerTable, NO_PRIVILEGE, TenantSession, literal, no_usage, quote},
    tenant_error::TenantError,
};

/// The setting in which a step's transaction finds when it began, in seconds since 1970: the server's own answer is the
/// time of the whole message.
pub(crate) const BEGAN: &str = "herder.began";

/// What a step's transaction begins with, and is told by in the end: whoever ends it and begins another has none. It means nothing
/// in one that writes, and neither SET nor RESET can change it behind the first statement. A savepoint would tell as much, and give
/// what the step writes another transaction's number: that of its own transaction is what a versioning trigger looks for.
const BEGIN: &str = "begin isolation level read committed, deferrable";

/// How much a step's transaction has to say where something is not as the plan wants it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Checks {
    /// Nothing but that.
    Quick,
    /// What it is.
    Careful,
}

/// The words around the steps of a plan, in one tenant.
pub(super) struct Frame<'a> {
    order: &'a Order<'a>,
    /// The tenant's schema.
    pub(super) home: String,
    /// The ledger's full name.
    ledger: String,
    /// What unqualified names are looked up in. None: the tenant is a whole database, and its path is its own affair.
    search_path: Option<String>,
    lock_key: i64,
}

impl<'a> Frame<'a> {
    /// The frame for the session's tenant, whose schema is `home`.
    pub(super) fn new(session: &TenantSession, home: String, order: &'a Order<'a>) -> Self {
        Self {
            order,
            ledger: format!("{}.{}", quote(&home), quote(&order.ledger.table)),
            home,
            search_path: session.search_path().map(str::to_owned),
            lock_key: session.lock_key(),
        }
    }

    /// What a step's transaction begins with. It `asks` the plan's own check as well, or not.
    pub(super) fn begin(&self, step: &PlanStep, asks: bool, checks: Checks) -> Result<String, TenantError> {
        // READ COMMITTED: what is read behind a lock must not be older than the lock.
        let enter = self.enter(step, asks, checks)?;
        Ok(format!("{BEGIN}; {enter}"))
    }

    /// What a step's transaction begins with, behind its BEGIN.
    pub(super) fn enter(&self, step: &PlanStep, asks: bool, checks: Checks) -> Result<String, TenantError> {
        let sql = self.settings("set local").join("; ");
        let checked = match checks {
            Checks::Quick => self.quick(step, asks)?,
            Checks::Careful => {
                let lock = format!(
                    "if not pg_catalog.pg_try_advisory_xact_lock({}) then {}; end if; ",
                    self.lock_key,
                    raise(LOCKED, "somebody else holds the tenant's lock", "''")
                );
                format!("{}{}", self.check(step, &lock), self.plan_check(asks))
            }
        };
        let began = format!(
            "select pg_catalog.set_config('{BEGAN}', \
             extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.text, true)"
        );
        Ok(format!("{sql}; {checked}; {began}"))
    }

    /// What the session is to a step, whatever it was to the one before it.
    pub(super) fn settings(&self, set: &str) -> Vec<String> {
        let name = format!("{set} application_name = {}", literal(self.order.name));
        let path = self.search_path.as_ref();
        let path = path.map(|path| format!("{set} search_path = {path}"));
        let others = self.order.plan.session.settings.iter();
        let others = others.map(|(name, value)| format!("{set} {} = {}", quote(name), literal(value)));
        std::iter::once(name).chain(path).chain(others).collect()
    }

    /// Makes sure of the same as [`check`](Self::check) and [`plan_check`](Self::plan_check), without a word of why not.
    fn quick(&self, step: &PlanStep, asks: bool) -> Result<String, TenantError> {
        let mut place = format!("pg_catalog.pg_try_advisory_xact_lock({})", self.lock_key);
        if self.search_path.is_some() {
            place.push_str(&format!(
                " and pg_catalog.current_schema() = {}",
                literal(&self.home)
            ));
        }
        let asks_quickly = asks && step.before == self.order.plan.before;
        if step.before.is_empty() {
            // An empty ledger is nearly always none at all: then there is nothing to lock.
            let none = format!("pg_catalog.to_regclass({}) is null", literal(&self.ledger));
            let quick = self.order.plan.quick.as_ref().filter(|_| asks_quickly);
            let quick = quick.map(|quick| self.placed(quick)).transpose()?;
            let asked = [Some(place), Some(none), quick].into_iter().flatten();
            return Ok(asked.map(|asked| expect(&asked)).collect::<Vec<_>>().join("; "));
        }
        let LedgerTable {
            revision, condition, ..
        } = self.order.ledger;
        let (ledger, rest) = match &self.order.plan.quick {
            Some(quick) if asks_quickly => (self.placed(quick)?, String::new()),
            _ => {
                let rows = format!(
                    "array(select ({revision})::pg_catalog.text from {} where {condition} \
                     order by ({revision})::pg_catalog.text collate \"C\") = {}",
                    self.ledger,
                    array(&step.before)
                );
                (rows, self.plan_check(asks))
            }
        };
        Ok(format!(
            "{}; lock table {} in share row exclusive mode; {}{rest}",
            expect(&place),
            self.ledger,
            expect(&ledger)
        ))
    }

    /// The plan's own check, ahead of the first step.
    pub(super) fn plan_check(&self, asks: bool) -> String {
        match &self.order.plan.check {
            Some(check) if asks => format!(";\n{check}\n"),
            _ => String::new(),
        }
    }

    /// Makes sure that the tenant is where the step wants it.
    pub(super) fn check(&self, step: &PlanStep, first: &str) -> String {
        let mut body = first.to_owned();
        if self.search_path.is_some() {
            // A schema that is not there is passed over in the path, and the next one would take its place.
            body.push_str(&format!(
                "if pg_catalog.current_schema() is distinct from {0} then \
                   if exists (select from pg_catalog.pg_namespace where nspname = {0}) then {1}; end if; {2}; \
                 end if; ",
                literal(&self.home),
                // So is one that this role may not use.
                raise(NO_PRIVILEGE, &no_usage(&self.home), "''"),
                raise(
                    NO_SCHEMA,
                    "the tenant's schema does not exist",
                    &literal(&self.home)
                )
            ));
        }
        let LedgerTable {
            revision, condition, ..
        } = self.order.ledger;
        // The lock keeps other tools from writing the ledger meanwhile; whoever reads it goes on. The table's name is
        // not looked up before that line runs, so it need not be there.
        body.push_str(&format!(
            "if pg_catalog.to_regclass({name}) is not null then \
               lock table {ledger} in share row exclusive mode; \
               herder_rows := array(select ({revision})::pg_catalog.text from {ledger} where {condition}); \
             end if; \
             if not (herder_rows @> {wanted} and herder_rows <@ {wanted}) then {moved}; end if;",
            name = literal(&self.ledger),
            ledger = self.ledger,
            wanted = array(&step.before),
            moved = raise(
                MOVED,
                "the tenant's ledger is elsewhere",
                "pg_catalog.to_json(herder_rows)::pg_catalog.text"
            ),
        ));
        block("herder_rows pg_catalog.text[] := '{}';", &body)
    }

    /// What a step's transaction ends with, before its COMMIT.
    pub(super) fn end(&self, checks: Checks) -> String {
        let unended = unended();
        match self.place_check(checks) {
            Some(check) => format!("{unended}; {check}"),
            None => unended,
        }
    }

    /// Makes sure that a step did not wander off: what it made without a schema's name would be somebody else's. An
    /// empty path is fine, as pg_dump sets it: then all names were written out.
    pub(super) fn place_check(&self, checks: Checks) -> Option<String> {
        self.search_path.as_ref()?;
        if checks == Checks::Quick {
            let home = literal(&self.home);
            return Some(expect(&format!(
                "coalesce(pg_catalog.current_schema(), {home}) = {home}"
            )));
        }
        let body = format!(
            "if pg_catalog.current_schema() <> {} then {}; end if;",
            literal(&self.home),
            raise(
                WANDERED,
                "search_path was set to another schema",
                "pg_catalog.current_schema()"
            )
        );
        Some(block("", &body))
    }

    /// A query of what stands in the ledger.
    pub(super) fn read_back(&self) -> String {
        let LedgerTable {
            revision, condition, ..
        } = self.order.ledger;
        format!(
            "select array(select ({revision})::pg_catalog.text from {} where {condition})",
            self.ledger
        )
    }

    /// A query of the tenant's mark: which database and schema this is, and, where the ledger has rows, which table that is and which
    /// transactions wrote them. Reading them changes none of it, nor does any piece of a revision. A ledger without rows may be
    /// made by the very step that is noted.
    pub(super) fn mark(&self, has_rows: bool) -> String {
        let LedgerTable {
            table,
            revision,
            condition,
            ..
        } = self.order.ledger;
        let schema = format!(
            "(select oid from pg_catalog.pg_namespace where nspname = {})",
            literal(&self.home)
        );
        let rows = match has_rows {
            true => format!(
                ", (select oid from pg_catalog.pg_class where relname = {} and relnamespace = {schema}), \
                 array(select pg_catalog.concat_ws('=', {revision}, xmin) from {} where {condition} \
                 order by ({revision})::pg_catalog.text collate \"C\")",
                literal(table),
                self.ledger
            ),
            false => String::new(),
        };
        format!(
            "select pg_catalog.concat_ws(' ', (select oid from pg_catalog.pg_database \
             where datname = pg_catalog.current_database()), {schema}{rows})"
        )
    }

    /// A step's SQL, with the tenant's schema in its place.
    pub(super) fn placed(&self, sql: &str) -> Result<String, TenantError> {
        let placed = placed(sql, &self.home).map(Cow::into_owned);
        let home = &self.home;
        placed.ok_or_else(|| {
            TenantError::tool(
                format!("schema `{home}` has a name that this plan cannot hold"),
                None,
            )
        })
    }
}

/// A set of texts as an SQL array.
pub(crate) fn array(texts: &BTreeSet<String>) -> String {
    let texts: Vec<String> = texts.iter().map(|t| literal(t)).collect();
    format!("array[{}]::pg_catalog.text[]", texts.join(", "))
}

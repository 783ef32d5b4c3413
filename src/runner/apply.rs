//! Applies a plan to one tenant: the only way in which Herder runs the SQL of a migration.
//!
//! Steps in transactions go to the server in one message, however many they are. Each transaction holds all that makes
//! it safe by itself: the tenant's lock, the proof that unqualified names mean the tenant's schema, the ledger at the
//! step's beginning, the step with its own word in the ledger, and the proof that it neither wandered off to another
//! schema nor ended the transaction. So it does not matter who is at work on the tenant besides, how often a step is
//! sent, or whether the answer to a COMMIT gets lost: the ledger says so, and what it does not allow does not happen.

mod mark;
mod message;
mod outside;
mod place;
mod refusal;
mod rehearse;
mod residue;

use std::{collections::BTreeSet, ops::Range};

use async_trait::async_trait;
use sqlx::Row;

use self::{
    message::Message,
    refusal::{LOCKED, MOVED, NO_SCHEMA, Refusal, WANDERED, expect, unended},
};
pub(crate) use self::{
    place::{fits, placed},
    refusal::{DIRTY, EDITED, UNFIT, block, raise},
    rehearse::{Rehearsed, rehearse},
    residue::leaves_residue,
};
use crate::{
    domain::{
        failure::FailureClass,
        half::Piece,
        plan::{Note, Plan, PlanStep, StepForm},
        revision::Ledger,
    },
    session::{LedgerTable, NO_PRIVILEGE, TenantSession, literal, no_usage, quote},
    tenant_error::TenantError,
};

/// How much may ride in one message: enough for any sane number of files, little enough for the server to swallow.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Back to the session as it was opened: a migration may have left its own settings, role and path.
const RESET: &str = "reset session authorization; reset role; reset all";

/// What else a session would leave to the next tenant's: DISCARD ALL, in words that may ride in a message. What
/// [`leaves_residue`] is about stays.
const FORGET: &str = "close all; unlisten *; deallocate all; discard temp; discard sequences; \
                      select pg_catalog.pg_advisory_unlock_all()";

/// The setting in which a step's transaction finds when it began, in seconds since 1970: the server's own answer is the
/// time of the whole message.
pub(crate) const BEGAN: &str = "herder.began";

/// What a step's transaction begins with, and is told by in the end: whoever ends it and begins another has none. It means nothing
/// in one that writes, and neither SET nor RESET can change it behind the first statement. A savepoint would tell as much, and give
/// what the step writes another transaction's number: that of its own transaction is what a versioning trigger looks for.
const BEGIN: &str = "begin isolation level read committed, deferrable";

/// What a plan is applied with.
pub(crate) struct Order<'a> {
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// How the tenant's ledger is read.
    pub(crate) ledger: &'a LedgerTable,
    /// What the session calls itself while it works at this tenant.
    pub(crate) name: &'a str,
    /// What becomes of the session.
    pub(crate) afterwards: Afterwards,
    /// What outlives the attempt besides the ledger.
    pub(crate) journal: &'a dyn Journal,
}

/// What becomes of a session behind a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// It is closed.
    Closed,
    /// It goes on to another tenant: it must be as new in the end, but for its connection. Only for plans that need no lock of
    /// the session's own: that would be forgotten, too.
    NextTenant,
}

/// How a plan was applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// All of it is done. The ledger was read after the last commit.
    Done(Ledger),
    /// The ledger was at the plan's end before anything was done.
    Found(Ledger),
    /// Somebody else holds the tenant's lock. Steps before that may have been done.
    Locked,
    /// The ledger stands where none of the plan's steps begins. Steps before that may have been done.
    Elsewhere(Ledger),
    /// Its ledger is where the plan begins, and the plan is not for it all the same: it is at such a place.
    Unfit(String),
}

/// How far an attempt got between two revisions, where the ledger cannot say so. It must outlive the attempt.
#[async_trait]
pub(crate) trait Journal: Send + Sync {
    /// What was noted last, by this attempt or by one before it.
    fn last(&self) -> Option<Note>;

    /// Notes it, in place of what was noted before. When this returns, it is safe.
    async fn note(&self, note: Option<&Note>) -> Result<(), TenantError>;
}

/// For plans whose ledger says all.
pub(crate) struct NoJournal;

#[async_trait]
impl Journal for NoJournal {
    fn last(&self) -> Option<Note> {
        None
    }

    async fn note(&self, _: Option<&Note>) -> Result<(), TenantError> {
        Ok(())
    }
}

/// Applies what is left to do of a plan. Where it has steps outside transactions, `session` must hold the tenant's
/// lock. After an error the session is good for closing only.
///
/// # Errors
/// What the server said. The tenant is at the beginning of a step, or in the middle of one outside a transaction.
pub(crate) async fn apply(session: &mut TenantSession, order: &Order<'_>) -> Result<Applied, TenantError> {
    let home = session.home().await?;
    let mut applier = Applier {
        ledger: format!("{}.{}", quote(&home), quote(&order.ledger.table)),
        home,
        session,
        noted: order.journal.last(),
        order,
        checked: false,
        read: None,
    };
    applier.apply().await
}

/// Whether a plan goes on behind a piece of the plan that this is `of`. Not where that was begun and is not to be done twice.
pub(crate) fn goes_on(piece: &Piece, of: &Plan, plan: &Plan) -> bool {
    let Some(note) = piece.note_for(of, plan) else {
        return false;
    };
    let step = usize::try_from(note.step).ok().and_then(|at| plan.steps.get(at));
    note.done || !step.is_some_and(outside::is_for_once)
}

/// How much a step's transaction has to say where something is not as the plan wants it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checks {
    /// Nothing but that.
    Quick,
    /// What it is.
    Careful,
}

struct Applier<'a> {
    session: &'a mut TenantSession,
    order: &'a Order<'a>,
    /// The tenant's schema.
    home: String,
    /// The ledger's full name.
    ledger: String,
    /// What was noted last, by this attempt or by a former one.
    noted: Option<Note>,
    /// Whether the plan's own check went through.
    checked: bool,
    /// The ledger as it was read behind the last step.
    read: Option<Ledger>,
}

impl Applier<'_> {
    async fn apply(&mut self) -> Result<Applied, TenantError> {
        let steps = &self.order.plan.steps;
        // A former attempt may have got some way: the server says so at the first step, and where.
        let mut at = self.after_note().await?;
        let (mut begun, mut looks) = (false, 0);
        while at < steps.len() {
            let end = at + self.ride(at);
            let done = match &steps[at].form {
                StepForm::Transaction { .. } if steps[at].before == steps[at].after => self.between(at).await,
                StepForm::Transaction { .. } => self.transactions(at..end).await,
                StepForm::Outside { .. } => self.outside(at).await,
            };
            let found = match done {
                Ok(()) => {
                    (at, begun, self.checked) = (end, true, true);
                    continue;
                }
                Err(Refusal::Moved(found)) => found,
                Err(Refusal::Locked) => {
                    self.clean_up().await?;
                    return Ok(Applied::Locked);
                }
                Err(Refusal::Unfit(at)) => {
                    self.clean_up().await?;
                    return Ok(Applied::Unfit(at));
                }
                Err(refusal) => return Err(failed(refusal)),
            };
            self.clean_up().await?;
            // Of several in a message, those before the one that was refused are committed.
            begun |= steps[at..end].iter().skip(1).any(|s| s.before == found.revisions);
            looks += 1;
            at = match self.locate(&found) {
                Some(end) if end == steps.len() && begun => return Ok(Applied::Done(found)),
                Some(end) if end == steps.len() => return Ok(Applied::Found(found)),
                // Without this limit, another tool that keeps moving the ledger would hold us here for ever.
                Some(step) if looks <= steps.len() => step,
                _ => return Ok(Applied::Elsewhere(found)),
            };
        }
        Ok(Applied::Done(match self.read.take() {
            Some(ledger) => ledger,
            None => self.session.read_ledger(self.order.ledger).await?,
        }))
    }

    /// How many steps from `at` on go to the server at once.
    fn ride(&self, at: usize) -> usize {
        let rides = |s: &&PlanStep| matches!(s.form, StepForm::Transaction { .. }) && s.before != s.after;
        self.order.plan.steps[at..]
            .iter()
            .take_while(rides)
            .count()
            .max(1)
    }

    /// Where to go on with this ledger. The number of steps: nowhere, it is at the end.
    fn locate(&self, found: &Ledger) -> Option<usize> {
        let plan = self.order.plan;
        if found.revisions == plan.after {
            return Some(plan.steps.len());
        }
        plan.steps.iter().position(|s| s.before == found.revisions)
    }

    /// Leaves the session as it was before the step that was refused.
    async fn clean_up(&mut self) -> Result<(), TenantError> {
        let mut message = Message::default();
        message.besides("rollback");
        message.besides(RESET);
        if self.order.afterwards == Afterwards::NextTenant {
            message.besides(FORGET);
        }
        message.send(self.session.connection()).await.map_err(failed)?;
        Ok(())
    }

    /// Steps that are one transaction each. Nearly always all is as the plan wants it, and then the quick checks are
    /// enough. What they refuse was not committed, so it may be sent again with those that say why.
    async fn transactions(&mut self, range: Range<usize>) -> Result<(), Refusal> {
        match self.send(range.clone(), Checks::Quick).await {
            Err(Refusal::Unexpected) => {
                self.clean_up().await?;
                self.send(range, Checks::Careful).await
            }
            sent => sent,
        }
    }

    /// Sends steps in as few messages as may be.
    async fn send(&mut self, range: Range<usize>, checks: Checks) -> Result<(), Refusal> {
        let plan = self.order.plan;
        let mut message = Message::default();
        for i in range.clone() {
            let step = &plan.steps[i];
            let StepForm::Transaction { sql } = &step.form else {
                continue;
            };
            message.before(step, &self.begin(step, i == range.start, checks)?);
            message.step(step, &self.placed(sql)?);
            message.behind(step, &self.end(checks));
            message.behind(step, "commit");
            message.committed(RESET);
            if message.len() > MESSAGE_LIMIT && i + 1 < range.end {
                std::mem::take(&mut message)
                    .send(self.session.connection())
                    .await?;
            }
        }
        let last = range.end == plan.steps.len();
        if last && self.order.afterwards == Afterwards::NextTenant {
            message.committed(FORGET);
        }
        // A ledger that is empty may be gone altogether: that is asked for apart.
        let read_back = last && !plan.after.is_empty();
        if read_back {
            let LedgerTable {
                revision, condition, ..
            } = self.order.ledger;
            message.committed(&format!(
                "select array(select ({revision})::pg_catalog.text from {} where {condition})",
                self.ledger
            ));
        }
        let reply = message.send(self.session.connection()).await?;
        if read_back {
            let row = reply.row.as_ref().map(|row| row.try_get::<Vec<String>, _>(0));
            let revisions = row.transpose()?.unwrap_or_default().into_iter().collect();
            self.read = Some(Ledger {
                revisions,
                half: None,
            });
        }
        Ok(())
    }

    /// A step in a transaction that leaves the ledger as it is: a piece of a revision. Whether it was committed is
    /// known by its transaction's number, which is noted before the commit.
    async fn between(&mut self, at: usize) -> Result<(), Refusal> {
        let step = &self.order.plan.steps[at];
        let StepForm::Transaction { sql } = &step.form else {
            return Ok(());
        };
        let mut message = Message::default();
        message.before(step, &self.begin(step, true, Checks::Careful)?);
        message.step(step, &self.placed(sql)?);
        message.behind(step, &self.end(Checks::Careful));
        message.behind(
            step,
            &format!(
                "select pg_catalog.pg_current_xact_id()::pg_catalog.text, ({})",
                self.mark(!step.before.is_empty())
            ),
        );
        let reply = message.send(self.session.connection()).await?;
        let (transaction, mark) = (reply.text(0)?, reply.text(1)?);
        let former = self.noted.clone();
        let note = Note {
            transaction: transaction.clone(),
            ..Note::of(at, mark)
        };
        self.note(Some(self.about(note))).await?;
        let mut message = Message::default();
        message.behind(step, "commit");
        message.committed(RESET);
        let sent = message.send(self.session.connection()).await;
        if let (Err(Refusal::Failed(error)), Some(transaction)) = (&sent, transaction)
            && error.class() != FailureClass::Infrastructure
        {
            self.clean_up().await?;
            // It may be there all the same: a cancel that comes while it is committed meets what is said behind that.
            if self.status(&transaction).await?.as_deref() == Some("aborted") {
                self.note(former).await?;
            }
        }
        sent.map(drop)
    }

    async fn note(&mut self, note: Option<Note>) -> Result<(), TenantError> {
        self.order.journal.note(note.as_ref()).await?;
        self.noted = note;
        Ok(())
    }

    /// A note with the revision that it leaves half applied, if it does.
    fn about(&self, note: Note) -> Note {
        let plan = self.order.plan;
        let begun = usize::try_from(note.step).ok();
        let may_be_done = begun.filter(|&at| plan.steps.get(at).is_some_and(outside::is_for_once));
        let half = may_be_done.or_else(|| note.done_through());
        Note {
            revision: half.map(|at| plan.revision_of(at)),
            ..note
        }
    }

    /// Where to begin, by what a former attempt noted.
    async fn after_note(&mut self) -> Result<usize, TenantError> {
        let Some(note) = self.noted.clone() else {
            return Ok(0);
        };
        if !self.is_as_noted(&note).await? {
            self.note(None).await?;
            return Ok(0);
        }
        let at = usize::try_from(note.step).unwrap_or_default();
        let Some(transaction) = note.transaction else {
            return Ok(at + usize::from(note.done));
        };
        // Its backend is gone, so that it is one of the two.
        match self.status(&transaction).await?.as_deref() {
            Some("committed") => Ok(at + 1),
            Some("aborted") => Ok(at),
            _ => Err(self.half_done(at)),
        }
    }

    /// What became of a transaction. None: it was so long ago that nobody knows any more.
    async fn status(&mut self, transaction: &str) -> Result<Option<String>, TenantError> {
        let asked = sqlx::query_scalar("select pg_xact_status($1::xid8)")
            .bind(transaction)
            .persistent(false);
        Ok(asked.fetch_one(self.session.connection()).await?)
    }

    /// That nobody knows how much of a step was done.
    fn half_done(&self, at: usize) -> TenantError {
        let revision = self.order.plan.revision_of(at);
        match self.order.ledger.half {
            Some(_) => TenantError::Dirty(revision),
            None => TenantError::Torn(revision),
        }
    }

    /// What a step's transaction begins with.
    fn begin(&self, step: &PlanStep, first: bool, checks: Checks) -> Result<String, TenantError> {
        // READ COMMITTED: what is read behind a lock must not be older than the lock.
        let enter = self.enter(step, first, checks)?;
        Ok(format!("{BEGIN}; {enter}"))
    }

    /// What a step's transaction begins with, behind its BEGIN.
    fn enter(&self, step: &PlanStep, first: bool, checks: Checks) -> Result<String, TenantError> {
        let sql = self.settings("set local").join("; ");
        let checked = match checks {
            Checks::Quick => self.quick(step, first)?,
            Checks::Careful => {
                let lock = format!(
                    "if not pg_catalog.pg_try_advisory_xact_lock({}) then {}; end if; ",
                    self.session.lock_key(),
                    raise(LOCKED, "somebody else holds the tenant's lock", "''")
                );
                format!("{}{}", self.check(step, &lock), self.plan_check(first))
            }
        };
        let began = format!(
            "select pg_catalog.set_config('{BEGAN}', \
             extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.text, true)"
        );
        Ok(format!("{sql}; {checked}; {began}"))
    }

    /// What the session is to a step, whatever it was to the one before it.
    fn settings(&self, set: &str) -> Vec<String> {
        let name = format!("{set} application_name = {}", literal(self.order.name));
        let path = self.session.search_path();
        let path = path.map(|path| format!("{set} search_path = {path}"));
        let others = self.order.plan.session.settings.iter();
        let others = others.map(|(name, value)| format!("{set} {} = {}", quote(name), literal(value)));
        std::iter::once(name).chain(path).chain(others).collect()
    }

    /// Makes sure of the same as [`check`](Self::check) and [`plan_check`](Self::plan_check), without a word of why not.
    fn quick(&self, step: &PlanStep, first: bool) -> Result<String, TenantError> {
        let mut place = format!(
            "pg_catalog.pg_try_advisory_xact_lock({})",
            self.session.lock_key()
        );
        if self.session.schema().is_some() {
            place.push_str(&format!(
                " and pg_catalog.current_schema() = {}",
                literal(&self.home)
            ));
        }
        let asks = first && !self.checked && step.before == self.order.plan.before;
        if step.before.is_empty() {
            // An empty ledger is nearly always none at all: then there is nothing to lock.
            let none = format!("pg_catalog.to_regclass({}) is null", literal(&self.ledger));
            let quick = self.order.plan.quick.as_ref().filter(|_| asks);
            let quick = quick.map(|quick| self.placed(quick)).transpose()?;
            let asked = [Some(place), Some(none), quick].into_iter().flatten();
            return Ok(asked.map(|asked| expect(&asked)).collect::<Vec<_>>().join("; "));
        }
        let LedgerTable {
            revision, condition, ..
        } = self.order.ledger;
        let (ledger, rest) = match &self.order.plan.quick {
            Some(quick) if asks => (self.placed(quick)?, String::new()),
            _ => {
                let rows = format!(
                    "array(select ({revision})::pg_catalog.text from {} where {condition} \
                     order by ({revision})::pg_catalog.text collate \"C\") = {}",
                    self.ledger,
                    array(&step.before)
                );
                (rows, self.plan_check(first))
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
    fn plan_check(&self, first: bool) -> String {
        match &self.order.plan.check {
            Some(check) if first && !self.checked => format!(";\n{check}\n"),
            _ => String::new(),
        }
    }

    /// Makes sure that the tenant is where the step wants it.
    fn check(&self, step: &PlanStep, first: &str) -> String {
        let mut body = first.to_owned();
        if self.session.schema().is_some() {
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
    fn end(&self, checks: Checks) -> String {
        let unended = unended();
        match self.place_check(checks) {
            Some(check) => format!("{unended}; {check}"),
            None => unended,
        }
    }

    /// Makes sure that a step did not wander off: what it made without a schema's name would be somebody else's. An
    /// empty path is fine, as pg_dump sets it: then all names were written out.
    fn place_check(&self, checks: Checks) -> Option<String> {
        self.session.schema()?;
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

    /// A step's SQL, with the tenant's schema in its place.
    fn placed(&self, sql: &str) -> Result<String, TenantError> {
        let placed = placed(sql, &self.home).map(std::borrow::Cow::into_owned);
        placed.ok_or_else(|| TenantError::Tool {
            message: format!("schema `{}` has a name that this plan cannot hold", self.home),
            sqlstate: None,
            revision: None,
            statement: None,
            hint: None,
        })
    }
}

fn failed(refusal: Refusal) -> TenantError {
    match refusal {
        Refusal::Failed(error) => error,
        other => TenantError::UnexpectedAnswer(format!("the server answered out of turn: {other:?}")),
    }
}

/// A set of texts as an SQL array.
pub(crate) fn array(texts: &BTreeSet<String>) -> String {
    let texts: Vec<String> = texts.iter().map(|t| literal(t)).collect();
    format!("array[{}]::pg_catalog.text[]", texts.join(", "))
}

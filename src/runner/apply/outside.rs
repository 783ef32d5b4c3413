//! Steps outside transactions: announced, looked up in the catalog, done, verified, recorded.

use super::{Applier, RESET, message::Message, refusal::Refusal};
use crate::{
    domain::plan::{Note, PlanStep, StepForm},
    runner::{
        RunnerError,
        copy::refuse_copy,
        kind::{Kind, controls_transaction, kind, undoes_itself},
        statement::split,
    },
    session::quote,
};

impl Applier<'_> {
    /// One step outside transactions. The session holds the tenant's lock.
    pub(super) async fn outside(&mut self, at: usize) -> Result<(), Refusal> {
        let step = &self.order.plan.steps[at];
        let StepForm::Outside {
            announce,
            withdraw,
            statements,
            record,
        } = &step.form
        else {
            return Ok(());
        };
        // Before anything is announced: the tenant would be half applied, and nothing done.
        for statement in statements {
            refuse_copy(statement, None, step.revisions.last().map(String::as_str))?;
        }
        let earlier = self.noted.clone();
        let resumed = self.announce(at, step, announce.as_deref()).await?;
        if resumed && statements.iter().any(|s| kind_of(s) == Kind::Once) {
            return Err(RunnerError::Dirty(self.order.plan.revision_of(at)).into());
        }
        for (i, statement) in statements.iter().enumerate() {
            let statement = self.placed(statement)?;
            if self.is_done(&statement, resumed).await? {
                continue;
            }
            let mut message = Message::default();
            message.step(step, &statement);
            if let Err(error) = message.send(self.session.connection()).await {
                // An index that is built in steps is not begun where its name is taken.
                let refused = match &error {
                    Refusal::Failed(RunnerError::Database { sqlstate, .. }) => {
                        let is_index = matches!(kind_of(&statement), Kind::CreateIndex { .. });
                        undoes_itself(&statement) || is_index && sqlstate == "42P07"
                    }
                    _ => false,
                };
                let nothing_before = statements[..i].iter().all(|s| kind_of(s) == Kind::Harmless);
                if refused && nothing_before && !resumed {
                    // If even this fails, the announcement stays, and somebody will look: better than doing it twice.
                    let _ = self.take_back(step, withdraw.as_deref(), earlier).await;
                }
                return Err(error);
            }
            self.verify(step, &statement).await?;
        }
        let controlled = |text: &String| split(text).into_iter().any(|s| controls_transaction(&text[s]));
        if statements.iter().any(controlled) {
            // A transaction that it left open is committed, as sqlx does. By itself: the server ends it on the spot.
            let mut message = Message::default();
            message.behind(step, "commit");
            message.send(self.session.connection()).await?;
        }
        let mut message = Message::default();
        if let Some(check) = self.place_check(super::Checks::Careful) {
            message.behind(step, &check);
        }
        message.behind(step, RESET);
        if let Some(record) = record {
            message.behind(step, &self.placed(record)?);
        }
        let is_noted = announce.is_none() && record.is_none();
        if is_noted {
            message.behind(step, &self.mark(!step.before.is_empty()));
        }
        let reply = message.send(self.session.connection()).await?;
        if is_noted {
            self.note(Some(Note {
                done: true,
                ..Note::of(at, reply.text(0)?)
            }))
            .await?;
        }
        Ok(())
    }

    /// Makes ready, makes sure that the tenant is where the step begins, and says that it is about to. True: a former
    /// attempt had said so, and did not come to its end.
    async fn announce(
        &mut self,
        at: usize,
        step: &PlanStep,
        announce: Option<&str>,
    ) -> Result<bool, Refusal> {
        let mut message = Message::default();
        for setting in self.settings("set") {
            message.before(step, &setting);
        }
        message.before(step, &(self.check(step, "") + &self.plan_check(true)));
        if let Some(announce) = announce {
            message.before(step, &self.placed(announce)?);
        } else {
            message.before(step, &self.mark(!step.before.is_empty()));
        }
        let reply = message.send(self.session.connection()).await?;
        if announce.is_some() {
            return Ok(reply.affected == 0);
        }
        let begun = Some(Note::of(at, reply.text(0)?));
        let resumed = self.noted == begun;
        if !resumed {
            self.note(begun).await?;
        }
        Ok(resumed)
    }

    /// Takes back the announcement of a step of which nothing was done.
    async fn take_back(
        &mut self,
        step: &PlanStep,
        withdraw: Option<&str>,
        earlier: Option<Note>,
    ) -> Result<(), Refusal> {
        let Some(withdraw) = withdraw else {
            return Ok(self.note(earlier).await?);
        };
        let mut message = Message::default();
        message.behind(step, &self.placed(withdraw)?);
        message.send(self.session.connection()).await?;
        Ok(())
    }

    /// Whether a statement needs no doing, by what the catalog says. Mends what a former try left behind: an invalid
    /// index serves no query, and `if not exists` would take it for a good one.
    async fn is_done(&mut self, statement: &str, resumed: bool) -> Result<bool, RunnerError> {
        match kind_of(statement) {
            Kind::CreateIndex { name, table } => match self.index(&name, &table).await? {
                // Our former try got this far: the announcement says so. Without one, the server decides.
                Some((_, true)) => Ok(resumed),
                Some((leftover, false)) => {
                    let mut message = Message::default();
                    message.besides(&format!("drop index concurrently {leftover}"));
                    message
                        .send(self.session.connection())
                        .await
                        .map_err(super::failed)?;
                    Ok(false)
                }
                None => Ok(false),
            },
            Kind::DropIndex { name } if resumed => {
                let there = sqlx::query_scalar("select to_regclass($1) is not null").bind(name);
                let there: bool = there
                    .persistent(false)
                    .fetch_one(self.session.connection())
                    .await?;
                Ok(!there)
            }
            Kind::AddValue { name, value } if resumed => {
                let there = sqlx::query_scalar(
                    "select exists (select from pg_enum where enumtypid = to_regtype($1) and enumlabel = $2)",
                );
                let there = there.bind(name).bind(value).persistent(false);
                Ok(there.fetch_one(self.session.connection()).await?)
            }
            Kind::DropIndex { .. } | Kind::AddValue { .. } | Kind::Harmless | Kind::Once => Ok(false),
        }
    }

    /// Whether an index that was built is good. `if not exists` may have found another session's work in progress.
    async fn verify(&mut self, step: &PlanStep, statement: &str) -> Result<(), RunnerError> {
        let Kind::CreateIndex { name, table } = kind_of(statement) else {
            return Ok(());
        };
        match self.index(&name, &table).await? {
            Some((index, false)) => Err(RunnerError::Tool {
                message: format!("index {index} is there, but not valid"),
                sqlstate: None,
                revision: step.revisions.first().cloned(),
                statement: Some(statement.to_owned()),
                hint: Some("somebody else may be building it; the next try drops what is left of it".into()),
            }),
            _ => Ok(()),
        }
    }

    /// The index of this name on this table, if the table is the tenant's: its full name, and whether it is valid.
    async fn index(&mut self, name: &str, table: &str) -> Result<Option<(String, bool)>, RunnerError> {
        let index: Option<(String, String, bool)> = sqlx::query_as(
            "select n.nspname::text, c.relname::text, i.indisvalid from pg_index i \
             join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace \
             where c.relname = $1 and i.indrelid = to_regclass($2) and ($3::text is null or n.nspname = $3)",
        )
        .bind(name)
        .bind(table)
        .bind(self.session.schema().map(str::to_owned))
        .persistent(false)
        .fetch_optional(self.session.connection())
        .await?;
        Ok(
            index
                .map(|(schema, index, is_valid)| (format!("{}.{}", quote(&schema), quote(&index)), is_valid)),
        )
    }
}

/// What one message outside a transaction does. Of several statements in one, nobody knows.
fn kind_of(message: &str) -> Kind {
    match split(message).as_slice() {
        [one] => kind(&message[one.clone()]),
        _ => Kind::Once,
    }
}

//! Steps outside transactions: announced, looked up in the catalog, done, verified, recorded.

use sqlx::Row;

use super::{Applier, Checks, RESET, message::Message, refusal::Refusal};
use crate::{
    domain::plan::{Note, PlanStep, STATEMENT, StepForm},
    runner::{
        copy::refuse_copy,
        kind::{Kind, controls_transaction, kind, undoes_itself},
        statement,
    },
    session::quote,
    tenant_error::TenantError,
};

/// How far former tries of a step got.
struct Former {
    /// Whether there was one that did not come to its end.
    resumed: bool,
    /// The statement that was begun last, of these very ones. Those before it are done.
    last: Option<usize>,
}

impl Former {
    /// By an announcement that does not tell one statement from the other.
    fn all(resumed: bool) -> Self {
        Self {
            resumed,
            last: resumed.then_some(usize::MAX),
        }
    }
}

/// An index as the catalog has it.
struct Index {
    /// Its full name.
    name: String,
    is_valid: bool,
    /// Whether it is in the tenant's own schema. In any other, another tenant may be building it just now.
    is_own: bool,
}

/// Whether nobody knows what doing a step outside transactions again would mean.
pub(super) fn is_for_once(step: &PlanStep) -> bool {
    let StepForm::Outside { statements, .. } = &step.form else {
        return false;
    };
    statements.iter().any(|s| kind_of(s) == Kind::Once)
}

impl Applier<'_> {
    /// One step outside transactions. The session holds the tenant's lock.
    pub(super) async fn outside(&mut self, at: usize) -> Result<(), Refusal> {
        let step = &self.order.plan.steps[at];
        let StepForm::Outside {
            announce,
            withdraw,
            begin,
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
        let former = self.announce(at, step, announce.as_deref()).await?;
        if former.resumed && is_for_once(step) {
            return Err(self.half_done(at).into());
        }
        for (i, statement) in statements.iter().enumerate() {
            let statement = self.frame.placed(statement)?;
            if self.is_done(i, &statement, &former).await? {
                continue;
            }
            self.say_begun(step, i, &statement, begin.as_deref()).await?;
            let mut message = Message::default();
            message.step(step, &statement);
            if let Err(error) = message.send(self.session.connection()).await {
                // An index that is built in steps is not begun where its name is taken.
                let refused = match &error {
                    Refusal::Failed(TenantError::Database { sqlstate, .. }) => {
                        let is_index = matches!(kind_of(&statement), Kind::CreateIndex { .. });
                        undoes_itself(&statement) || is_index && sqlstate == "42P07"
                    }
                    _ => false,
                };
                let nothing_before = statements[..i].iter().all(|s| kind_of(s) == Kind::Harmless);
                if refused && nothing_before && !former.resumed {
                    // If even this fails, the announcement stays, and somebody will look: better than doing it twice.
                    let _ = self.take_back(step, withdraw.as_deref(), earlier).await;
                }
                return Err(error);
            }
            self.verify(step, &statement).await?;
        }
        let controlled = |text: &String| statement::statements(text).any(controls_transaction);
        if statements.iter().any(controlled) {
            // A transaction that it left open is committed, as sqlx does. By itself: the server ends it on the spot.
            let mut message = Message::default();
            message.behind(step, "commit");
            message.send(self.session.connection()).await?;
        }
        let mut message = Message::default();
        if let Some(check) = self.frame.place_check(Checks::Careful) {
            message.behind(step, &check);
        }
        message.behind(step, RESET);
        if let Some(record) = record {
            message.behind(step, &self.frame.placed(record)?);
        }
        let is_noted = announce.is_none() && record.is_none();
        if is_noted {
            message.behind(step, &self.frame.mark(!step.before.is_empty()));
        }
        let reply = message.send(self.session.connection()).await?;
        if is_noted {
            let done = Note {
                done: true,
                ..Note::of(at, reply.text(0)?)
            };
            self.note(Some(self.about(done))).await?;
        }
        Ok(())
    }

    /// Says that a statement is about to build an index, so that the next try knows that for its own. Not where there is one
    /// of that name: it is somebody else's, and for the server to refuse.
    async fn say_begun(
        &mut self,
        step: &PlanStep,
        number: usize,
        statement: &str,
        begin: Option<&str>,
    ) -> Result<(), Refusal> {
        let (Some(begin), Kind::CreateIndex { name, table }) = (begin, kind_of(statement)) else {
            return Ok(());
        };
        if self.index(&name, &table).await?.is_none() {
            let begin = self.frame.placed(begin)?.replace(STATEMENT, &number.to_string());
            let mut message = Message::default();
            message.behind(step, &begin);
            message.send(self.session.connection()).await?;
        }
        Ok(())
    }

    /// Makes ready, makes sure that the tenant is where the step begins, and says that it is about to.
    async fn announce(
        &mut self,
        at: usize,
        step: &PlanStep,
        announce: Option<&str>,
    ) -> Result<Former, Refusal> {
        let mut message = Message::default();
        for setting in self.frame.settings("set") {
            message.before(step, &setting);
        }
        message.before(
            step,
            &(self.frame.check(step, "") + &self.frame.plan_check(!self.checked)),
        );
        let said = match announce {
            Some(announce) => self.frame.placed(announce)?,
            None => self.frame.mark(!step.before.is_empty()),
        };
        message.before(step, &said);
        let reply = message.send(self.session.connection()).await?;
        if announce.is_some() {
            let Some(row) = &reply.row else {
                return Ok(Former::all(reply.affected == 0));
            };
            let last: i64 = row.try_get(1)?;
            return Ok(Former {
                resumed: row.try_get(0)?,
                last: usize::try_from(last).ok(),
            });
        }
        let begun = Some(self.about(Note::of(at, reply.text(0)?)));
        let resumed = self.noted == begun;
        if !resumed {
            self.note(begun).await?;
        }
        Ok(Former::all(resumed))
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
        message.behind(step, &self.frame.placed(withdraw)?);
        message.send(self.session.connection()).await?;
        Ok(())
    }

    /// Whether a statement needs no doing, by what the catalog says. Mends what a former try left behind: an invalid
    /// index serves no query, and `if not exists` would take it for a good one.
    async fn is_done(
        &mut self,
        number: usize,
        statement: &str,
        former: &Former,
    ) -> Result<bool, TenantError> {
        let resumed = former.resumed;
        match kind_of(statement) {
            Kind::CreateIndex { name, table } => match self.index(&name, &table).await? {
                // Our former try got this far: it has said so. Otherwise the server decides.
                Some(index) if index.is_valid => Ok(former.last.is_some_and(|last| number <= last)),
                Some(leftover) if leftover.is_own => {
                    let mut message = Message::default();
                    message.besides(&format!("drop index concurrently {}", leftover.name));
                    message
                        .send(self.session.connection())
                        .await
                        .map_err(super::failed)?;
                    Ok(false)
                }
                _ => Ok(false),
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
    async fn verify(&mut self, step: &PlanStep, statement: &str) -> Result<(), TenantError> {
        let Kind::CreateIndex { name, table } = kind_of(statement) else {
            return Ok(());
        };
        match self.index(&name, &table).await? {
            Some(index) if !index.is_valid => Err(TenantError::Tool {
                message: format!("index {} is there, but not valid", index.name),
                sqlstate: None,
                revision: step.revisions.first().cloned(),
                statement: Some(statement.to_owned()),
                hint: Some(match index.is_own {
                    true => "somebody else may be building it; the next try drops what is left of it".into(),
                    false => format!(
                        "it is not in the tenant's schema, so Herder leaves it alone; once nobody is building it any more, \
                         drop index concurrently {}, and `herder retry`",
                        index.name
                    ),
                }),
            }),
            _ => Ok(()),
        }
    }

    /// The index of this name on this table. The server cuts names that are too long, and so does its cast.
    async fn index(&mut self, name: &str, table: &str) -> Result<Option<Index>, TenantError> {
        let index: Option<(String, String, bool)> = sqlx::query_as(
            "select n.nspname::text, c.relname::text, i.indisvalid from pg_index i \
             join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace \
             where c.relname = $1::text::name and i.indrelid = to_regclass($2)",
        )
        .bind(name)
        .bind(table)
        .persistent(false)
        .fetch_optional(self.session.connection())
        .await?;
        let own = self.session.schema();
        Ok(index.map(|(schema, index, is_valid)| Index {
            name: format!("{}.{}", quote(&schema), quote(&index)),
            is_valid,
            is_own: own.is_none_or(|own| own == schema),
        }))
    }
}

/// What one message outside a transaction does. Of several statements in one, nobody knows.
fn kind_of(message: &str) -> Kind {
    match statement::split(message).as_slice() {
        [one] => kind(&message[one.clone()]),
        _ => Kind::Once,
    }
}

//! From the words of Alembic's offline mode to the steps of a plan.

use std::collections::BTreeSet;

use super::{
    Event,
    words::{
        ends_with_its_transaction, for_session, is_lasting, is_setting, looks, names_schema_without_quotes,
        transaction_word,
    },
};
use crate::{
    domain::plan::{PlanStep, REVISION_MARK, SCHEMA, StepForm, is_whole},
    runner::statement::{Words, statements, tokens},
};

/// The other made-up schema: of another length, with another beginning, and with all kinds of characters: whatever a revision
/// makes of them shows.
pub(super) const OTHER_SCHEMA: &str = "Some-Other Place:1.x";

/// What stands for a tenant's database. Where that is the tenant, its name must not be in the plan either.
pub(super) const DATABASE: &str = "herder_tenant";

/// What stands for a tenant's database in the second rendering.
pub(super) const OTHER_DATABASE: &str = "some_other_place";

/// The events with one made-up schema in place of the other. A plan that depends on the name differs all the same.
pub(super) fn with_schema(events: Vec<Event>) -> Vec<Event> {
    let place = |text: String| text.replace(OTHER_SCHEMA, SCHEMA);
    events
        .into_iter()
        .map(|event| match event {
            Event::Sql(text) => Event::Sql(place(text)),
            Event::Ledger(text) => Event::Ledger(place(text)),
            other => other,
        })
        .collect()
}

/// The revision of the first word that is not the same in both. None inside: env.py's own.
pub(super) fn first_difference(one: &[Event], other: &[Event]) -> Option<Option<String>> {
    let mut revision = None;
    for i in 0..one.len().max(other.len()) {
        if let Some(Event::Step(id)) = one.get(i) {
            revision = Some(id.clone());
        }
        if one.get(i) != other.get(i) {
            return Some(revision);
        }
    }
    None
}

/// Makes a plan's steps of what Alembic said, from a ledger with these rows on. `table` is the ledger's.
///
/// # Errors
/// Why it is no plan.
pub(super) fn steps(
    events: &[Event],
    before: &BTreeSet<String>,
    table: &str,
) -> Result<Vec<PlanStep>, String> {
    let mut assembly = Assembly {
        at: before.clone(),
        ledger: before.clone(),
        ..Assembly::default()
    };
    for event in events {
        assembly.take(event, table)?;
    }
    assembly.close();
    if let Some(place) = assembly.cut_off {
        return Err(format!(
            "{place} does for its transaction what a plan, which ends that earlier, would lose"
        ));
    }
    if let Some(step) = look_in_pieces(&assembly.steps) {
        return Err(format!(
            "revision {} looks first what is there (`checkfirst`), and a revision in pieces cannot be left to Alembic half done",
            step.revisions.join(", ")
        ));
    }
    if let Some((step, word)) = of_its_own_message(&assembly.steps) {
        return Err(format!(
            "revision {} says `{word}`, which means something else in the one message of a plan",
            step.revisions.join(", ")
        ));
    }
    match assembly.lasting {
        Some((step, place)) if step + 1 < assembly.steps.len() => Err(format!(
            "{place} changes a setting of the session, which lasts longer than a step of a plan"
        )),
        _ => Ok(assembly.steps),
    }
}

/// A step that looks at what is there where a revision may be half done.
fn look_in_pieces(steps: &[PlanStep]) -> Option<&PlanStep> {
    let has_look = |text: &str| statements(text).any(looks);
    let mut numbered = steps.iter().enumerate();
    let found = numbered.find(|(at, step)| !is_whole(steps, *at) && step.form.statements().any(has_look));
    found.map(|(_, step)| step)
}

/// A step that says what means something else where the server is told all transactions of a plan in one message: it reads a
/// message before it does the first of it, and its clock stands still meanwhile, from one transaction to the next as well.
fn of_its_own_message(steps: &[PlanStep]) -> Option<(&PlanStep, &'static str)> {
    const READ_BY: [&str; 3] = [
        "standard_conforming_strings",
        "backslash_quote",
        "client_encoding",
    ];
    const ABOUT_IT: [&str; 2] = ["statement_timestamp", "current_query"];
    const CLOCKS: [&str; 4] = [
        "now()",
        "current_timestamp",
        "transaction_timestamp",
        "localtimestamp",
    ];
    const WRITES: [&str; 5] = ["insert", "update", "delete", "merge", "with"];
    let says = |step: &PlanStep, words: &[&'static str], which: &dyn Fn(&str) -> bool| {
        let said: Vec<String> = step
            .form
            .statements()
            .flat_map(statements)
            .filter(|statement| which(statement))
            .map(str::to_ascii_lowercase)
            .collect();
        let found = words
            .iter()
            .find(|word| said.iter().any(|statement| statement.contains(**word)));
        found.copied()
    };
    let anywhere = [READ_BY.as_slice(), ABOUT_IT.as_slice()].concat();
    let writes = |statement: &str| tokens(statement).is_any(0, &WRITES);
    let told = steps
        .iter()
        .find_map(|step| Some((step, says(step, &anywhere, &|_| true)?)));
    // The first transaction's own clock is right.
    let timed = || {
        let mut timed = steps
            .iter()
            .filter_map(|step| Some((step, says(step, &CLOCKS, &writes)?)));
        timed.nth(1)
    };
    told.or_else(timed)
}

#[derive(Default)]
struct Assembly {
    steps: Vec<PlanStep>,
    /// Settings that env.py makes before the first revision. To a live migration they hold for the whole session; a
    /// plan's steps have sessions and transactions of their own, so each begins with them.
    settings: Vec<String>,
    /// Whether a revision has begun.
    begun: bool,
    /// Whether all revisions are done.
    ended: bool,
    /// The revision that has begun and is not done.
    revision: Option<String>,
    /// How many of the statements are of the revisions before it.
    before_it: usize,
    /// Whether the ledger's table is being made.
    making_ledger: bool,
    /// Whether the statements are within BEGIN and COMMIT.
    transaction: bool,
    /// Comments for the next statement.
    remarks: Vec<String>,
    /// The first step in which a revision changes a setting for all that comes behind it.
    lasting: Option<(usize, String)>,
    /// The place that does something for as long as its transaction, which a plan ends before a torn revision, and Alembic does not.
    cut_off: Option<String>,
    /// What belongs to the next step.
    statements: Vec<String>,
    record: Vec<String>,
    revisions: Vec<String>,
    /// The ledger's rows when the next step begins.
    at: BTreeSet<String>,
    /// The ledger's rows now.
    ledger: BTreeSet<String>,
}

impl Assembly {
    fn take(&mut self, event: &Event, table: &str) -> Result<(), String> {
        match event {
            Event::Begin => {
                self.close();
                self.transaction = true;
            }
            Event::Commit => {
                self.close();
                self.transaction = false;
            }
            Event::Step(id) => {
                (self.begun, self.making_ledger) = (true, true);
                self.revision = Some(id.clone());
                self.before_it = self.statements.len();
                self.remarks.push(format!("{REVISION_MARK}{id}"));
            }
            Event::Remark(text) => {
                self.making_ledger = false;
                self.remarks.push(text.clone());
            }
            Event::Sql(text) => self.sql(text, table)?,
            Event::Ledger(text) if self.transaction => self.statement(text),
            Event::Ledger(text) => self.record.push(text.clone()),
            Event::Heads(heads) => {
                self.ledger = heads.clone();
                self.revisions.extend(self.revision.take());
                if !self.transaction {
                    self.close();
                }
            }
            Event::End => self.ended = true,
        }
        Ok(())
    }

    fn sql(&mut self, text: &str, table: &str) -> Result<(), String> {
        let statements: Vec<&str> = statements(text).collect();
        if let Some(word) = statements.iter().find_map(|s| transaction_word(s)) {
            return Err(format!("{} says {word} by itself", self.place()));
        }
        if text.contains('\0') {
            return Err(format!(
                "{} says a character that PostgreSQL does not take (NUL)",
                self.place()
            ));
        }
        if names_schema_without_quotes(text) {
            return Err(format!(
                "{} names the schema without quotes around it",
                self.place()
            ));
        }
        if self.begun && self.lasting.is_none() && statements.iter().any(|s| is_lasting(s)) {
            self.lasting = Some((self.steps.len(), self.place()));
        }
        if !self.begun && statements.iter().all(|s| is_setting(s)) {
            self.settings.extend(statements.into_iter().map(str::to_owned));
        } else if self.making_ledger {
            // Live, Alembic looks whether it is there: a tenant that went down to the base still has it.
            self.statement(&text.replacen("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1));
        } else if self.ended && text.starts_with("DROP TABLE ") && text.trim_end_matches('"').ends_with(table)
        {
            // Before 1.20, Alembic drops the ledger's table at the base, but only offline.
        } else if self.transaction {
            self.statement(text);
        } else if statements.len() > 1 {
            // Drivers send them as one message, which is one transaction to the server.
            return Err(format!(
                "{} says several statements at once outside a transaction",
                self.place()
            ));
        } else {
            self.statements.extend(statements.into_iter().map(str::to_owned));
        }
        Ok(())
    }

    fn place(&self) -> String {
        match &self.revision {
            Some(revision) => format!("revision {revision}"),
            None => "env.py".into(),
        }
    }

    /// Adds a statement, with the comments that stand before it.
    fn statement(&mut self, text: &str) {
        self.remarks.push(text.to_owned());
        self.statements.push(self.remarks.join("\n"));
        self.remarks.clear();
    }

    /// Makes a step of what there is. Two, where a revision is torn in pieces: whoever is at the revision before it needs its
    /// first piece, and must find it alone.
    fn close(&mut self) {
        let own = std::mem::take(&mut self.before_it);
        if self.revision.is_some() && !self.revisions.is_empty() && self.transaction {
            let piece = self.statements.split_off(own);
            let is_cut_off = |text: &String| statements(text).any(ends_with_its_transaction);
            if self.statements.iter().any(is_cut_off) {
                self.cut_off = Some(format!("revision {}", self.revisions.join(", ")));
            }
            self.step(None);
            self.statements = piece;
        }
        self.step(self.revision.clone());
    }

    /// Makes a step of what there is. `torn`: the revision that it is a piece of, and not the last one.
    fn step(&mut self, torn: Option<String>) {
        let before = std::mem::replace(&mut self.at, self.ledger.clone());
        if self.statements.is_empty() && self.record.is_empty() {
            return;
        }
        let statements = std::mem::take(&mut self.statements);
        if self.remarks.is_empty() {
            // What is left of this revision stands in another step.
            let left = self.revision.iter().map(|id| format!("{REVISION_MARK}{id}"));
            self.remarks.extend(left);
        }
        let form = if self.transaction {
            let all = self.settings.iter().cloned().chain(statements);
            StepForm::Transaction {
                sql: all.map(|s| ended(&s)).collect(),
            }
        } else {
            let settings = self.settings.iter().filter_map(|s| for_session(s));
            let record: String = self.record.drain(..).map(|s| ended(&s)).collect();
            StepForm::Outside {
                announce: None,
                withdraw: None,
                begin: None,
                statements: settings.chain(statements).collect(),
                record: Some(record).filter(|r| !r.is_empty()),
            }
        };
        let done = std::mem::take(&mut self.revisions);
        self.steps.push(PlanStep {
            revisions: done.into_iter().chain(torn).collect(),
            before,
            after: self.ledger.clone(),
            form,
        });
    }
}

/// A statement with its end. A comment on its last line must not swallow the semicolon.
fn ended(statement: &str) -> String {
    let last = statement.lines().last().unwrap_or_default();
    let end = if last.contains("--") { "\n;\n" } else { ";\n" };
    format!("{statement}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&str]) -> BTreeSet<String> {
        rows.iter().map(|r| (*r).to_owned()).collect()
    }

    fn script(events: serde_json::Value) -> Result<Vec<PlanStep>, String> {
        let events: Vec<Event> = serde_json::from_value(events).expect("events");
        steps(&events, &rows(&["a"]), "alembic_version")
    }

    #[test]
    fn a_block_outside_a_transaction_splits_its_revision() {
        let steps = script(serde_json::json!([
            {"is": "begin"}, {"is": "sql", "of": "SET LOCAL search_path TO \"Herder:Tenant\", public"},
            {"is": "step", "of": "b"}, {"is": "remark", "of": "-- Running upgrade a -> b"},
            {"is": "sql", "of": "create table t (x int) -- hi"}, {"is": "ledger", "of": "update v"},
            {"is": "heads", "of": ["b"]},
            {"is": "step", "of": "c"}, {"is": "remark", "of": "-- Running upgrade b -> c"},
            {"is": "commit"},
            {"is": "sql", "of": "create index concurrently i on t (x);"}, {"is": "sql", "of": "select 1"},
            {"is": "begin"}, {"is": "sql", "of": "alter table t add y int"}, {"is": "ledger", "of": "update w"},
            {"is": "heads", "of": ["c"]}, {"is": "end"}, {"is": "commit"},
        ]));
        let steps = steps.expect("a plan");
        let set = "SET LOCAL search_path TO \"Herder:Tenant\", public;\n";
        let expected = [
            PlanStep {
                revisions: vec!["b".into()],
                before: rows(&["a"]),
                after: rows(&["b"]),
                form: StepForm::Transaction {
                    sql: format!(
                        "{set}-- revision b\n-- Running upgrade a -> b\ncreate table t (x int) -- hi\n;\nupdate v;\n"
                    ),
                },
            },
            PlanStep {
                revisions: vec!["c".into()],
                before: rows(&["b"]),
                after: rows(&["b"]),
                form: StepForm::Outside {
                    announce: None,
                    withdraw: None,
                    begin: None,
                    statements: [
                        "SET search_path TO \"Herder:Tenant\", public",
                        "create index concurrently i on t (x)",
                        "select 1",
                    ]
                    .map(str::to_owned)
                    .to_vec(),
                    record: None,
                },
            },
            PlanStep {
                revisions: vec!["c".into()],
                before: rows(&["b"]),
                after: rows(&["c"]),
                form: StepForm::Transaction {
                    sql: format!(
                        "{set}-- revision c\n-- Running upgrade b -> c\nalter table t add y int;\nupdate w;\n"
                    ),
                },
            },
        ];
        assert_eq!(steps, expected);
    }

    /// A tenant that stands at the revision before it is to find its first piece.
    #[test]
    fn the_first_piece_of_a_torn_revision_stands_alone() {
        let steps = script(serde_json::json!([
            {"is": "begin"}, {"is": "sql", "of": "set local x = 1"},
            {"is": "step", "of": "b"}, {"is": "sql", "of": "select 'b'"}, {"is": "ledger", "of": "update v"},
            {"is": "heads", "of": ["b"]},
            {"is": "step", "of": "c"}, {"is": "sql", "of": "select 'c'"},
            {"is": "commit"}, {"is": "sql", "of": "vacuum"}, {"is": "begin"}, {"is": "ledger", "of": "update w"},
            {"is": "heads", "of": ["c"]}, {"is": "end"}, {"is": "commit"},
        ]));
        let steps = steps.expect("a plan");
        let found: Vec<_> = steps
            .iter()
            .map(|s| (s.revisions.join(","), s.before.clone(), s.after.clone()))
            .collect();
        let is = |of: &str, before: &str, after: &str| (of.to_owned(), rows(&[before]), rows(&[after]));
        assert_eq!(
            found,
            [
                is("b", "a", "b"),
                is("c", "b", "b"),
                is("c", "b", "b"),
                is("c", "b", "c")
            ]
        );
        let StepForm::Transaction { sql } = &steps[1].form else {
            unreachable!("it is in a transaction")
        };
        assert_eq!(sql, "set local x = 1;\n-- revision c\nselect 'c';\n");
    }

    #[test]
    fn what_means_something_else_in_one_message_is_no_plan() {
        let two = |first: &str, second: &str| {
            script(serde_json::json!([
                {"is": "begin"}, {"is": "step", "of": "b"}, {"is": "sql", "of": first}, {"is": "ledger", "of": "update v"},
                {"is": "heads", "of": ["b"]}, {"is": "commit"},
                {"is": "begin"}, {"is": "step", "of": "c"}, {"is": "sql", "of": second}, {"is": "ledger", "of": "update w"},
                {"is": "heads", "of": ["c"]}, {"is": "commit"}, {"is": "end"},
            ]))
        };
        let why = |first, second| two(first, second).expect_err("no plan");
        assert!(
            why("set local standard_conforming_strings = off", "select 1")
                .starts_with("revision b says `standard")
        );
        assert!(
            why("select 1", "update t set at = Statement_Timestamp()")
                .starts_with("revision c says `statement_")
        );
        assert!(
            why("update t set at = now()", "delete from t where at < now()")
                .starts_with("revision c says `now()`")
        );
        assert!(
            two(
                "update t set at = now()",
                "create table u (at timestamptz default now())"
            )
            .is_ok()
        );
    }

    #[test]
    fn a_look_is_not_in_one_transaction_with_a_piece_of_a_revision() {
        let look = "-- checkfirst\ndo $herder_checkfirst$ begin end $herder_checkfirst$";
        let torn_between = |before: &str, behind: &str| {
            script(serde_json::json!([
                {"is": "begin"}, {"is": "step", "of": "b"}, {"is": "sql", "of": before}, {"is": "ledger", "of": "update v"},
                {"is": "heads", "of": ["b"]},
                {"is": "step", "of": "c"}, {"is": "commit"}, {"is": "sql", "of": "vacuum"}, {"is": "begin"},
                {"is": "ledger", "of": "update w"}, {"is": "heads", "of": ["c"]},
                {"is": "step", "of": "d"}, {"is": "sql", "of": behind}, {"is": "ledger", "of": "update x"},
                {"is": "heads", "of": ["d"]}, {"is": "end"}, {"is": "commit"},
            ]))
        };
        assert!(torn_between(look, "select 1").is_ok());
        let why = torn_between("select 1", look).expect_err("no plan");
        assert!(
            why.starts_with("revision c, d looks first what is there"),
            "{why}"
        );
    }

    #[test]
    fn what_a_revision_does_for_its_transaction_is_not_cut_off_by_a_torn_one() {
        let torn_behind = |sql: &str| {
            script(serde_json::json!([
                {"is": "begin"}, {"is": "step", "of": "b"}, {"is": "sql", "of": sql}, {"is": "ledger", "of": "update v"},
                {"is": "heads", "of": ["b"]}, {"is": "step", "of": "c"}, {"is": "sql", "of": "select 'c'"},
                {"is": "commit"}, {"is": "sql", "of": "vacuum"},
            ]))
        };
        assert!(torn_behind("update t set a = 1").is_ok());
        for sql in [
            "update t set a = 1; set local app.by = 'me'",
            "select set_config('app.by', 'me', true)",
            "do $$ begin perform set_config('app.by', 'me', true); end $$",
            "set constraints all deferred",
            "create table u (a int references t deferrable initially deferred)",
            "lock table t",
            "create temp table x (a int) on commit drop",
        ] {
            assert_eq!(
                torn_behind(sql).expect_err(sql),
                "revision b does for its transaction what a plan, which ends that earlier, would lose"
            );
        }
    }

    #[test]
    fn statements_that_are_one_message_outside_a_transaction_are_no_plan() {
        let events = serde_json::json!([
            {"is": "step", "of": "b"}, {"is": "remark", "of": "-- up"},
            {"is": "sql", "of": "insert into t values (1); update t set a = 1"},
        ]);
        assert_eq!(
            script(events).expect_err("no plan"),
            "revision b says several statements at once outside a transaction"
        );
    }

    #[test]
    fn a_setting_that_outlasts_its_step_makes_no_plan() {
        let set = |sql: &str, then: serde_json::Value| {
            let mut events = vec![
                serde_json::json!({"is": "begin"}),
                serde_json::json!({"is": "step", "of": "b"}),
                serde_json::json!({"is": "sql", "of": sql}),
                serde_json::json!({"is": "heads", "of": ["b"]}),
            ];
            events.extend(then.as_array().cloned().unwrap_or_default());
            script(events.into())
        };
        let more = serde_json::json!([{"is": "commit"}, {"is": "sql", "of": "vacuum"}]);
        assert_eq!(
            set("SET TIME ZONE 'Asia/Tokyo'", more.clone()).expect_err("no plan"),
            "revision b changes a setting of the session, which lasts longer than a step of a plan"
        );
        assert!(set("set local time zone 'Asia/Tokyo'", more.clone()).is_ok());
        assert!(set("set statement_timeout = '1h'", more.clone()).is_ok());
        assert!(set("select set_config('TimeZone', 'Asia/Tokyo', true)", more.clone()).is_ok());
        assert!(set("select set_config('TimeZone', 'Asia/Tokyo', false)", more.clone()).is_err());
        let block = "do $$ begin perform set_config('TimeZone', 'Asia/Tokyo', false), true; end $$";
        assert!(set(block, more.clone()).is_err());
        assert!(set("reset timezone", more).is_err());
        assert!(set("SET TIME ZONE 'Asia/Tokyo'", serde_json::json!([])).is_ok());
    }

    #[test]
    fn what_manages_transactions_or_names_the_schema_bare_is_no_plan() {
        let why = |sql: &str| {
            let events = [Event::Begin, Event::Step("b".into()), Event::Sql(sql.into())];
            steps(&events, &rows(&[]), "alembic_version").expect_err(sql)
        };
        assert_eq!(why("select 1; Commit"), "revision b says COMMIT by itself");
        assert_eq!(
            why("grant usage on schema Herder:Tenant to x"),
            "revision b names the schema without quotes around it"
        );
        let fine = [
            Event::Begin,
            Event::Step("b".into()),
            Event::Sql("select 'Herder:Tenant', $$ begin; $$".into()),
        ];
        assert!(steps(&fine, &rows(&[]), "alembic_version").is_ok());
    }
}

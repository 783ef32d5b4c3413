//! What is half applied in a tenant: done, and not in its ledger.

use super::{
    plan::{Note, Plan},
    revision::{Direction, History, Ledger, Standing},
};

/// What attempts have left behind in a tenant that its ledger does not tell of. It is the tenant's, and not a job's: whoever comes next
/// must know, whatever run it comes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// Which way they were going.
    pub direction: Direction,
    /// The revisions of which a part is committed, or may be.
    pub revisions: Vec<String>,
    /// How far that is, where a plan did it. None: the migration tool did, and nobody knows.
    pub piece: Option<Piece>,
}

/// How far a plan got that goes from revision to revision in several pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The plan's id.
    pub plan: String,
    /// What it noted last.
    pub note: Note,
}

impl Half {
    /// The revisions that are not done to this day. Whoever has finished one by hand has said so in the ledger.
    pub fn still(&self, history: &History, ledger: &Ledger) -> Vec<String> {
        let is_applied = |id: &str| history.standing(Direction::Upgrade, Some(id), ledger);
        let is_half = |id: &&String| match is_applied(id) {
            Ok(standing) => (standing == Standing::AtTarget) == (self.direction == Direction::Downgrade),
            Err(_) => true,
        };
        self.revisions.iter().filter(is_half).cloned().collect()
    }

    /// Whether it is in the way of a run. What is undone by half counts as applied, and is not.
    pub fn bars(&self, direction: Direction, has_pending: bool) -> bool {
        has_pending || (self.direction, direction) == (Direction::Downgrade, Direction::Upgrade)
    }
}

impl Piece {
    /// Whether it is about a tenant with this ledger, where it is `of` that plan. Whoever has moved it since has it begin anew.
    pub fn is_about(&self, of: &Plan, ledger: &Ledger) -> bool {
        let step = usize::try_from(self.note.step)
            .ok()
            .and_then(|step| of.steps.get(step));
        step.is_none_or(|step| step.before == ledger.revisions)
    }

    /// What another plan is to take for its own note, if it is `of` the plan that this is of from there on, up to there.
    pub fn note_for(&self, of: &Plan, other: &Plan) -> Option<Note> {
        let step = usize::try_from(self.note.step).ok()?;
        let begin = of.steps.iter().position(|s| s.before == other.before)?;
        let own = step.checked_sub(begin)?;
        let done = of.steps.get(begin..=step)?;
        let is_alike = of.direction == other.direction && other.steps.get(..=own) == Some(done);
        is_alike.then(|| Note {
            step: i32::try_from(own).unwrap_or(i32::MAX),
            ..self.note.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::{PlanStep, StepForm};

    /// A plan that goes by these revisions, each in so many pieces.
    fn plan(before: &str, steps: &[(&str, i32)]) -> Plan {
        let mut plan = Plan::of_sql("");
        plan.steps.clear();
        plan.before = [before.to_owned()].into();
        let mut at = plan.before.clone();
        for (id, pieces) in steps {
            for piece in 1..=*pieces {
                let next = match piece == *pieces {
                    true => [(*id).to_owned()].into(),
                    false => at.clone(),
                };
                plan.steps.push(PlanStep {
                    revisions: vec![(*id).to_owned()],
                    before: std::mem::replace(&mut at, next),
                    after: at.clone(),
                    form: StepForm::Transaction {
                        sql: format!("{id} {piece}"),
                    },
                });
            }
        }
        plan.after = at;
        plan
    }

    fn noted(step: i32) -> Piece {
        Piece {
            plan: String::new(),
            note: Note::of(usize::try_from(step).unwrap_or_default(), None),
        }
    }

    #[test]
    fn a_plan_goes_on_where_another_one_with_the_same_pieces_broke_off() {
        let whole = plan("a", &[("b", 1), ("c", 3)]);
        let step = |of: &Plan, other: &Plan, step| noted(step).note_for(of, other).map(|note| note.step);
        assert_eq!(step(&whole, &whole, 2), Some(2));
        // It begins where the tenant is by now, and goes further.
        let rest = plan("b", &[("c", 3), ("d", 1)]);
        assert_eq!(step(&whole, &rest, 2), Some(1));
        assert_eq!(step(&whole, &rest, 0), None);
        let other = plan("b", &[("c", 2), ("d", 1)]);
        assert_eq!(step(&whole, &other, 1), Some(0));
        assert_eq!(step(&whole, &other, 3), None);
        assert_eq!(step(&whole, &plan("x", &[("c", 3)]), 2), None);
        assert_eq!(step(&rest, &whole, 1), None);
    }
}

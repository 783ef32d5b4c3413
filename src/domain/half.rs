//! What is half applied in a tenant: done, and not in its ledger.

use super::plan::{Note, Plan};

/// What attempts have left behind in a tenant that its ledger does not tell of. It is the tenant's, and not a job's: whoever comes next
/// must know, whatever run it comes with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Half {
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
    /// Those of its revisions that are to be done.
    pub fn of_pending<'a>(&self, pending: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        let is_half = |id: &&String| self.revisions.contains(id);
        let mut left: Vec<String> = pending.into_iter().filter(is_half).cloned().collect();
        left.dedup();
        left
    }
}

impl Piece {
    /// Whether what was noted of the plan that it is of holds for this one as well: both begin alike, up to there.
    pub fn fits(&self, of: &Plan, other: &Plan) -> bool {
        let done = usize::try_from(self.note.step).map_or(usize::MAX, |step| step.saturating_add(1));
        let pieces = |plan: &Plan| plan.steps.get(..done).map(<[_]>::to_vec);
        of.before == other.before && pieces(of).is_some() && pieces(of) == pieces(other)
    }
}

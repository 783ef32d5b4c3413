//! All revisions of a project: what a target means among them, and what a ledger.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::{Direction, Ledger, LedgerForm, Revision, Target};

/// Where a tenant stands, seen from a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is left to do: at the target, or past it in the run's direction.
    AtTarget,
    /// It has no ledger, or an empty one, and the target asks for more.
    NeverMigrated,
    /// The run has something to do here.
    Behind,
}

/// All revisions of a project, first to last, and how its ledgers are read.
#[derive(Clone, Debug)]
pub struct History {
    revisions: Vec<Revision>,
    index: HashMap<String, usize>,
    form: LedgerForm,
    opaque: bool,
}

/// Why a target or a ledger does not fit the history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// No revision has this id, nor begins with it.
    #[error("no revision `{0}` in the history")]
    UnknownTarget(String),
    /// It stands for the base, and an upgrade goes nowhere from there.
    #[error("`{0}` is the base, which only a downgrade leads to")]
    IsBase(String),
    /// Several revisions begin with it.
    #[error("`{prefix}` is ambiguous: it matches {}", .candidates.join(", "))]
    AmbiguousTarget {
        /// What was asked for.
        prefix: String,
        /// The ids that begin with it.
        candidates: Vec<String>,
    },
    /// `head` means nothing where there are several.
    #[error("the history has {} heads: {}", .0.len(), .0.join(", "))]
    SeveralHeads(Vec<String>),
    /// A relative step meets a branch or a merge.
    #[error("{0:+} from `{1}` is ambiguous: the history branches there")]
    AmbiguousStep(i64, String),
    /// The ledger names a revision that these migrations do not have.
    #[error("the ledger is at `{0}`, which is not among these migrations")]
    UnknownLedger(String),
    /// A ledger of heads names a revision that another one in it builds on.
    #[error("the ledger has `{below}` beside `{above}`, which builds on it")]
    Overlap {
        /// The one that is too much.
        below: String,
        /// The one that says enough.
        above: String,
    },
    /// Only a revision in full, or the base, can be a target where nobody lists the revisions.
    #[error("the revisions are not known, so `{0}` cannot be used as a target")]
    NotListed(String),
    /// The history itself makes no sense.
    #[error("{0}")]
    Broken(String),
}

impl History {
    /// A history from its revisions, which must come before those that build on them.
    ///
    /// # Errors
    /// A revision that stands twice, builds on one that does not come before it, or has the name of a target.
    pub fn new(revisions: Vec<Revision>, form: LedgerForm) -> Result<Self, HistoryError> {
        let mut index = HashMap::with_capacity(revisions.len());
        for (i, revision) in revisions.iter().enumerate() {
            if let Some(down) = revision.before().find(|d| !index.contains_key(*d)) {
                return Err(HistoryError::Broken(format!(
                    "revision `{}` builds on `{down}`, which is missing",
                    revision.id
                )));
            }
            if !matches!(revision.id.parse(), Ok(Target::Revision(_))) {
                return Err(HistoryError::Broken(format!(
                    "a revision cannot be called `{}`: as a target, that means another",
                    revision.id
                )));
            }
            if index.insert(revision.id.clone(), i).is_some() {
                return Err(HistoryError::Broken(format!(
                    "revision `{}` appears twice",
                    revision.id
                )));
            }
        }
        Ok(Self {
            revisions,
            index,
            form,
            opaque: false,
        })
    }

    /// The history of a tool that does not list its revisions. A tenant is at the target if its ledger says just
    /// that; what is pending is the tool's own business.
    pub fn opaque() -> Self {
        Self {
            revisions: Vec::new(),
            index: HashMap::new(),
            form: LedgerForm::Heads,
            opaque: true,
        }
    }

    /// Whether the revisions are not known.
    pub fn is_opaque(&self) -> bool {
        self.opaque
    }

    /// All revisions, first to last.
    pub fn revisions(&self) -> &[Revision] {
        &self.revisions
    }

    /// The revision with this id.
    pub fn get(&self, id: &str) -> Option<&Revision> {
        self.index.get(id).map(|&i| &self.revisions[i])
    }

    /// The revisions that nothing builds on.
    pub fn heads(&self) -> Vec<&str> {
        let downs: HashSet<&str> = self.revisions.iter().flat_map(Revision::before).collect();
        self.revisions
            .iter()
            .map(|r| r.id.as_str())
            .filter(|id| !downs.contains(id))
            .collect()
    }

    /// The absolute revision that a target means for a tenant with this ledger: its id, or None for the base.
    ///
    /// A step past either end stops at that end, so that `+1` leaves alone a tenant that is at the head already.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub fn resolve(&self, target: &Target, ledger: &Ledger) -> Result<Option<String>, HistoryError> {
        match target {
            Target::Base => Ok(None),
            Target::Revision(name) if self.is_zero(name) => Ok(None),
            Target::Revision(name) if self.opaque && !is_step_from_an_end(name) => Ok(Some(name.clone())),
            other if self.opaque => Err(HistoryError::NotListed(other.to_string())),
            Target::Head => match self.heads().as_slice() {
                [] => Ok(None),
                [head] => Ok(Some((*head).to_owned())),
                several => Err(HistoryError::SeveralHeads(
                    several.iter().map(|s| (*s).to_owned()).collect(),
                )),
            },
            Target::Revision(name) => match self.find(name) {
                Err(unknown @ HistoryError::UnknownTarget(_)) => self.beside(name)?.ok_or(unknown),
                found => found.map(|r| Some(r.id.clone())),
            },
            Target::Relative(steps) => match self.current(ledger)?.as_slice() {
                [] => self.walk(*steps, None),
                [one] => self.walk(*steps, Some(one.clone())),
                several => Err(HistoryError::AmbiguousStep(*steps, several.join(","))),
            },
        }
    }

    /// The revision that `head-1`, `base+2` or `REV+1` names. None: it is no such name, or REV is no revision.
    fn beside(&self, name: &str) -> Result<Option<Option<String>>, HistoryError> {
        let Some((from, steps)) = split_step(name) else {
            return Ok(None);
        };
        let from = match from.parse() {
            Ok(end @ (Target::Head | Target::Base)) => self.resolve(&end, &Ledger::default())?,
            _ => match self.find(from) {
                // `2024-01` is no step back from `2024-02`, which begins as it does.
                Ok(found) if found.id == from || !found.id.contains(['+', '-']) => Some(found.id.clone()),
                _ => return Ok(None),
            },
        };
        self.walk(steps, from).map(Some)
    }

    /// Whether it is sqlx's word for the base: the version below all others.
    fn is_zero(&self, name: &str) -> bool {
        self.form == LedgerForm::Applied && name.parse() == Ok(0_i64) && self.get("0").is_none()
    }

    /// The revision with this id or, where it is a number, of this value; else the only one that begins so.
    fn find(&self, name: &str) -> Result<&Revision, HistoryError> {
        if let Some(exact) = self.get(name) {
            return Ok(exact);
        }
        // `0007` is version 7 of a numbered history.
        if self.form == LedgerForm::Applied
            && let Some(same) = name.parse::<i64>().ok().and_then(|n| self.get(&n.to_string()))
        {
            return Ok(same);
        }
        match self
            .revisions
            .iter()
            .filter(|r| r.id.starts_with(name))
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => Err(HistoryError::UnknownTarget(name.to_owned())),
            [only] => Ok(only),
            several => Err(HistoryError::AmbiguousTarget {
                prefix: name.to_owned(),
                candidates: several.iter().map(|r| r.id.clone()).collect(),
            }),
        }
    }

    /// So many revisions up or down from one. None: the base.
    fn walk(&self, steps: i64, mut at: Option<String>) -> Result<Option<String>, HistoryError> {
        for _ in 0..steps.unsigned_abs() {
            let next: Vec<&str> = match (&at, steps > 0) {
                (None, false) => return Ok(None),
                (Some(id), false) => match self.get(id).map(|r| r.down.as_slice()) {
                    Some([]) => return Ok(None),
                    Some(down) => down.iter().map(String::as_str).collect(),
                    None => return Err(HistoryError::UnknownLedger(id.clone())),
                },
                (None, true) => self
                    .revisions
                    .iter()
                    .filter(|r| r.before().next().is_none())
                    .map(|r| r.id.as_str())
                    .collect(),
                (Some(id), true) => self
                    .revisions
                    .iter()
                    .filter(|r| r.before().any(|d| d == id))
                    .map(|r| r.id.as_str())
                    .collect(),
            };
            match next.as_slice() {
                [] => break,
                [one] => at = Some((*one).to_owned()),
                _ => {
                    return Err(HistoryError::AmbiguousStep(
                        steps,
                        at.unwrap_or_else(|| "base".into()),
                    ));
                }
            }
        }
        Ok(at)
    }

    /// All that is applied in a tenant with this ledger.
    ///
    /// # Errors
    /// A revision in the ledger that is not in the history, or that does not belong beside the others.
    pub fn applied(&self, ledger: &Ledger) -> Result<HashSet<&str>, HistoryError> {
        let mut applied = HashSet::new();
        for id in &ledger.revisions {
            let revision = self
                .get(id)
                .ok_or_else(|| HistoryError::UnknownLedger(id.clone()))?;
            match self.form {
                LedgerForm::Heads => {
                    let with_it = self.closure(&revision.id);
                    if let Some(below) = ledger
                        .revisions
                        .iter()
                        .find(|other| *other != id && with_it.contains(other.as_str()))
                    {
                        return Err(HistoryError::Overlap {
                            below: below.clone(),
                            above: id.clone(),
                        });
                    }
                    applied.extend(with_it);
                }
                LedgerForm::Applied => {
                    applied.insert(revision.id.as_str());
                }
            }
        }
        Ok(applied)
    }

    /// A revision and all that must be there before it comes.
    fn closure<'a>(&'a self, id: &'a str) -> HashSet<&'a str> {
        self.reached(id, |r| r.before().collect())
    }

    /// A revision and all that it follows, from one to the next.
    fn line<'a>(&'a self, id: &'a str) -> HashSet<&'a str> {
        self.reached(id, |r| r.down.iter().map(String::as_str).collect())
    }

    fn reached<'a>(&'a self, id: &'a str, next: fn(&'a Revision) -> Vec<&'a str>) -> HashSet<&'a str> {
        let mut seen = HashSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if seen.insert(id)
                && let Some(revision) = self.get(id)
            {
                open.extend(next(revision));
            }
        }
        seen
    }

    /// What a run has applied (or, downwards, undone) in a tenant beyond what was `pending` there: a tool may know no target.
    ///
    /// # Errors
    /// A revision in a ledger that is not in the history.
    pub fn beyond(
        &self,
        direction: Direction,
        before: &Ledger,
        pending: &[String],
        after: &Ledger,
    ) -> Result<Vec<&str>, HistoryError> {
        if self.opaque {
            return Ok(Vec::new());
        }
        let (before, after) = (self.applied(before)?, self.applied(after)?);
        let (from, to) = match direction {
            Direction::Upgrade => (&before, &after),
            Direction::Downgrade => (&after, &before),
        };
        let moved = |id: &&str| to.contains(id) && !from.contains(id) && !pending.iter().any(|p| p == id);
        let all = self.revisions.iter().map(|r| r.id.as_str());
        Ok(all.filter(moved).collect())
    }

    /// The newest applied revisions: one, except where branches stand side by side.
    ///
    /// # Errors
    /// A revision in the ledger that is not in the history.
    pub fn current(&self, ledger: &Ledger) -> Result<Vec<String>, HistoryError> {
        if self.opaque {
            return Ok(ledger.revisions.iter().cloned().collect());
        }
        let applied = self.applied(ledger)?;
        let built_on: HashSet<&str> = applied
            .iter()
            .filter_map(|id| self.get(id))
            .flat_map(Revision::before)
            .collect();
        // In a numbered history with a gap the newest one counts, whatever is missing below it.
        let mut current: Vec<&str> = self.revisions.iter().map(|r| r.id.as_str()).collect();
        current.retain(|id| applied.contains(id) && !built_on.contains(id));
        if self.form == LedgerForm::Applied {
            current = current.split_off(current.len().saturating_sub(1));
        }
        Ok(current.into_iter().map(str::to_owned).collect())
    }

    /// A revision that a tenant's ledger says is half done, where going this way, over these pending ones, does not take it up.
    pub fn stuck(&self, direction: Direction, pending: &[String], ledger: &Ledger) -> Option<String> {
        let half = ledger.half.as_ref()?;
        // What is half undone still counts as applied, and what is half applied does not.
        let was_going = match ledger.revisions.contains(half) {
            true => Direction::Downgrade,
            false => Direction::Upgrade,
        };
        let resumes = self.get(half).is_some_and(|r| r.resumes.contains(&direction));
        (was_going != direction || !pending.contains(half) || !resumes).then(|| half.clone())
    }

    /// What a run towards `target` would apply (or, downwards, undo) in a tenant with this ledger, in that order.
    /// Nothing where the revisions are not known: then only [`standing`](Self::standing) tells.
    ///
    /// # Errors
    /// A target, or a revision in the ledger, that is not in the history: it may have been there when the target was frozen.
    pub fn pending(
        &self,
        direction: Direction,
        target: Option<&str>,
        ledger: &Ledger,
    ) -> Result<Vec<&Revision>, HistoryError> {
        if self.opaque {
            return Ok(Vec::new());
        }
        let applied = self.applied(ledger)?;
        let wanted = match target {
            Some(t) => {
                let known = self.get(t).ok_or_else(|| HistoryError::UnknownTarget(t.into()))?;
                self.closure(&known.id)
            }
            None => HashSet::new(),
        };
        let wanted: HashSet<String> = wanted.into_iter().map(str::to_owned).collect();
        let ids = self.revisions.iter();
        Ok(match direction {
            Direction::Upgrade => ids
                .filter(|r| wanted.contains(&r.id) && !applied.contains(r.id.as_str()))
                .collect(),
            Direction::Downgrade => {
                // Undoing reaches only what follows the target, and what cannot be without that: an unrelated branch stays,
                // and so does one that merely depends on the target.
                let there = |r: &&Revision| applied.contains(r.id.as_str()) && !wanted.contains(&r.id);
                let follows = |id: &str| target.is_none_or(|t| self.line(id).contains(t));
                let undone: HashSet<&str> = self
                    .revisions
                    .iter()
                    .filter(there)
                    .map(|r| r.id.as_str())
                    .filter(|id| follows(id))
                    .collect();
                ids.rev()
                    .filter(there)
                    .filter(|r| self.closure(&r.id).iter().any(|id| undone.contains(id)))
                    .collect()
            }
        })
    }

    /// Whether a run towards `target` has anything to do in a tenant with this ledger.
    ///
    /// # Errors
    /// As [`pending`](Self::pending).
    pub fn standing(
        &self,
        direction: Direction,
        target: Option<&str>,
        ledger: &Ledger,
    ) -> Result<Standing, HistoryError> {
        let nothing_to_do = match self.opaque {
            true => ledger.revisions.iter().map(String::as_str).eq(target),
            false => self.pending(direction, target, ledger)?.is_empty(),
        };
        Ok(match nothing_to_do {
            true => Standing::AtTarget,
            false if ledger.revisions.is_empty() => Standing::NeverMigrated,
            false => Standing::Behind,
        })
    }

    /// A checksum of all that a run towards `target` may apply: the revisions up to it, or all where it is None. Two
    /// processes with the same one would do the same.
    pub fn fingerprint(&self, target: Option<&str>) -> String {
        let wanted = target.map(|t| self.closure(t));
        let mut hash = Sha256::new();
        for revision in self
            .revisions
            .iter()
            .filter(|r| wanted.as_ref().is_none_or(|w| w.contains(r.id.as_str())))
        {
            for text in [
                revision.id.as_str(),
                revision.checksum.as_deref().unwrap_or_default(),
            ] {
                hash.update(text.as_bytes());
                hash.update([0]);
            }
        }
        format!("{:x}", hash.finalize())
    }

    /// How a ledger is written for a person: its newest revision, `base` where there is none.
    /// A revision that the history does not know is named as the ledger names it.
    pub fn describe(&self, ledger: &Ledger) -> Option<String> {
        let current = self
            .current(ledger)
            .unwrap_or_else(|_| ledger.revisions.iter().cloned().collect());
        (!current.is_empty()).then(|| current.join(","))
    }
}

/// `REV` and `N` of `REV+N` or `REV-N`.
fn split_step(name: &str) -> Option<(&str, i64)> {
    let (from, step) = name.split_at(name.rfind(['+', '-'])?);
    let steps = step.parse().ok().filter(|steps| *steps != 0)?;
    (!from.is_empty()).then_some((from, steps))
}

/// Whether it is a step from the head or the base, which no revision is called.
fn is_step_from_an_end(name: &str) -> bool {
    let from = split_step(name).and_then(|(from, _)| from.parse().ok());
    matches!(from, Some(Target::Head | Target::Base))
}

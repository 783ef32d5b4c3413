//! Which tenants of a list are asked for.

use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    fmt,
    str::FromStr,
};

use super::{
    ResolveError,
    few::{SHOWN, first_few},
};
use crate::{nearest::did_you_mean, tenant_source::Listed};

/// What a person asks for. Empty: everybody.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only these, by id. Empty: all.
    pub only: Vec<String>,
    /// Not these, by id.
    pub exclude: Vec<String>,
    /// Only those with all of these labels.
    pub labels: Vec<Label>,
}

/// A label with its value. Without a value: any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// Its value, if it matters.
    pub value: Option<String>,
}

impl Label {
    fn is_on(&self, tenant: &Listed) -> bool {
        let found = tenant.labels.get(&self.name);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|wanted| wanted == found))
    }
}

impl FromStr for Label {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let name = name.to_owned();
        Ok(Self { name, value })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A part of a tenant list.
#[derive(Debug, Default)]
pub struct Selection {
    /// What was asked for, in the source's order.
    pub chosen: Vec<Listed>,
    /// All the rest.
    pub left_out: Vec<Listed>,
}

impl Wanted {
    /// Parts a list into those who are asked for, and the others.
    ///
    /// # Errors
    /// An id or a label that the source does not list, or nobody is left.
    pub fn select(&self, listed: Vec<Listed>) -> Result<Selection, ResolveError> {
        self.check(&listed)?;
        let total = listed.len();
        let only: HashSet<&str> = self.only.iter().map(String::as_str).collect();
        let exclude: HashSet<&str> = self.exclude.iter().map(String::as_str).collect();
        let is_chosen = |tenant: &Listed| {
            let id = tenant.id.as_str();
            (only.is_empty() || only.contains(id))
                && !exclude.contains(id)
                && self.labels.iter().all(|label| label.is_on(tenant))
        };
        let (chosen, left_out): (Vec<_>, Vec<_>) = listed.into_iter().partition(is_chosen);
        if chosen.is_empty() && total > 0 {
            return Err(ResolveError::NothingLeft(total));
        }
        Ok(Selection { chosen, left_out })
    }

    /// What nobody has was mistyped, most likely: it must not pass for a smaller fleet.
    fn check(&self, listed: &[Listed]) -> Result<(), ResolveError> {
        let known: HashSet<&str> = listed.iter().map(|t| t.id.as_str()).collect();
        for (option, ids) in [("--tenant", &self.only), ("--exclude", &self.exclude)] {
            let unknown: Vec<&String> = ids.iter().filter(|id| !known.contains(id.as_str())).collect();
            if !unknown.is_empty() {
                let name = |id: &&String| {
                    let ids = listed.iter().map(|t| t.id.as_str());
                    format!("`{}`{}", id.escape_debug(), did_you_mean(id, ids))
                };
                let first = unknown.iter().take(SHOWN).map(name).collect();
                return Err(ResolveError::Unknown {
                    option,
                    unknown: first_few(first, unknown.len()),
                });
            }
        }
        let is_on_none = |label: &&Label| !listed.iter().any(|tenant| label.is_on(tenant));
        match self.labels.iter().find(is_on_none) {
            None => Ok(()),
            Some(label) => {
                let names: BTreeSet<&str> = listed
                    .iter()
                    .flat_map(|t| t.labels.keys())
                    .map(String::as_str)
                    .collect();
                let is_known = names.contains(label.name.as_str());
                Err(ResolveError::NoLabel {
                    label: label.to_string().escape_debug().to_string(),
                    nearest: match is_known {
                        true => String::new(),
                        false => did_you_mean(&label.name, names.into_iter()),
                    },
                })
            }
        }
    }
}

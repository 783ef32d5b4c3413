//! From a tenant list to the tenants of a run: which were asked for, where each of them lives, and which of them are
//! one job because they live in one place. Either all of it makes sense or there is no run.

use std::collections::{HashMap, HashSet};

use crate::{
    domain::{
        failure::cut,
        tenant::{Isolation, PUBLIC, Tenant},
    },
    secret::is_secret_url,
    servers::Servers,
    tenant_source::Listed,
};

mod collapse;
mod few;
mod locate;
#[cfg(test)]
mod tests;
mod wanted;

pub use self::wanted::{Label, Selection, Wanted};

use self::{
    collapse::collapse,
    few::Few,
    locate::{isolation_of, locate},
};

/// The most bytes of an id. Indexes of the control database hold it, whose entries end at 2,700; and people read it.
const LONGEST_ID: usize = 500;

/// How many characters of a longer one are shown.
const SHOWN_OF_ID: usize = 40;

/// A tenant list, made sense of.
#[derive(Debug, Default)]
pub struct Resolved {
    /// One per place, in the source's order.
    pub tenants: Vec<Tenant>,
    /// What a person should know before the run starts: whole sentences without a full stop.
    pub warnings: Vec<String>,
}

/// Why a tenant list cannot become a run. No text holds a URL.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The source lists nobody.
    #[error("no tenants: the source lists none; [tenants] in the config says what to list")]
    Empty,
    /// The selection leaves nobody.
    #[error("no tenants: the selection leaves none of the {0} that the source lists")]
    NothingLeft(usize),
    /// An option names tenants that the source does not list.
    #[error("{option} names what the source does not list: {}", .unknown.join(", "))]
    Unknown {
        /// `--tenant` or `--exclude`.
        option: &'static str,
        /// The first few ids, each with the nearest known one.
        unknown: Vec<String>,
    },
    /// No tenant has a label.
    #[error("no tenant has the label `{label}`{nearest}")]
    NoLabel {
        /// Which.
        label: String,
        /// The nearest name that a label has. No value: it may be a password.
        nearest: String,
    },
    /// A tenant cannot be left out: its place is another's, too.
    #[error(
        "--exclude cannot leave out `{excluded}`: it shares its place with `{with}`, and is migrated with it"
    )]
    Shared {
        /// Who was to be left out.
        excluded: String,
        /// Who is migrated.
        with: String,
    },
    /// Some tenants make no sense.
    #[error("{count} {} wrong: {}", if *count == 1 { "thing is" } else { "things are" }, .first.join("; "))]
    Wrong {
        /// How many complaints there are.
        count: usize,
        /// The first few, each naming its tenant, and how many more there are.
        first: Vec<String>,
    },
}

/// Finds the place of every tenant, and makes one tenant of those that share one.
///
/// # Errors
/// Anything is wrong with any of them.
pub fn resolve(listed: Vec<Listed>, servers: &Servers) -> Result<Resolved, ResolveError> {
    if listed.is_empty() {
        return Err(ResolveError::Empty);
    }
    let mut complaints = Few::default();
    check_ids(&listed, &mut complaints);
    let mut tenants = Vec::with_capacity(listed.len());
    let mut unused_schemas = Few::default();
    for entry in listed {
        if isolation_of(&entry) == Ok(Isolation::Database)
            && entry.schema.as_deref().is_some_and(|s| s != PUBLIC)
        {
            unused_schemas.push(|| format!("`{}`", entry.id.escape_debug()));
        }
        if is_secret_url(&entry.id) {
            continue;
        }
        let id = entry.id.clone();
        match locate(entry, servers) {
            Ok(tenant) => tenants.push(tenant),
            Err(fault) => complaints.push(|| format!("tenant `{}` {fault}", id.escape_debug())),
        }
    }
    if complaints.count > 0 {
        return Err(ResolveError::Wrong {
            count: complaints.count,
            first: complaints.list(),
        });
    }
    let mut warnings = Vec::new();
    if unused_schemas.count > 0 {
        warnings.push(format!(
            "the schema is not used where the isolation is `database`: {}",
            unused_schemas.list().join(", ")
        ));
    }
    let tenants = collapse(tenants, &mut warnings);
    Ok(Resolved { tenants, warnings })
}

/// [`Wanted::select`], then [`resolve`]; it also warns of tenants that nobody asked for, but that live in a place that will be
/// migrated.
///
/// # Errors
/// Resolves what was selected of a list. What is wrong with a tenant that nobody asked for does not matter.
pub fn resolve_selected(
    listed: Vec<Listed>,
    servers: &Servers,
    wanted: &Wanted,
) -> Result<Resolved, ResolveError> {
    let Selection { chosen, left_out } = wanted.select(listed)?;
    let mut resolved = resolve(chosen, servers)?;
    let jobs: HashMap<_, _> = resolved.tenants.iter().map(|t| (&t.place, t)).collect();
    let mut along = Few::default();
    for tenant in left_out
        .into_iter()
        .filter_map(|entry| locate(entry, servers).ok())
    {
        if let Some(job) = jobs.get(&tenant.place) {
            if wanted.exclude.contains(&tenant.id) {
                return Err(ResolveError::Shared {
                    excluded: tenant.id.escape_debug().to_string(),
                    with: job.id.escape_debug().to_string(),
                });
            }
            along.push(|| {
                format!(
                    "`{}` (with `{}`)",
                    tenant.id.escape_debug(),
                    job.id.escape_debug()
                )
            });
        }
    }
    if along.count > 0 {
        resolved.warnings.push(format!(
            "not selected, but migrated as well, because they share a place with a selected tenant: {}",
            along.list().join(", ")
        ));
    }
    Ok(resolved)
}

fn check_ids(listed: &[Listed], complaints: &mut Few) {
    let mut times: HashMap<&str, usize> = HashMap::with_capacity(listed.len());
    for (row, entry) in listed.iter().enumerate() {
        let id = entry.id.as_str();
        if id.trim().is_empty() {
            complaints.push(|| format!("tenant number {} has an empty id", row + 1));
            continue;
        }
        if is_secret_url(id) {
            complaints.push(|| format!("tenant number {} has a URL with a password for an id", row + 1));
            continue;
        }
        if id.len() > LONGEST_ID {
            complaints.push(|| {
                let beginning = cut(id, SHOWN_OF_ID);
                format!(
                    "tenant `{}` has an id of {} bytes; at most {LONGEST_ID} are possible",
                    beginning.escape_debug(),
                    id.len()
                )
            });
            continue;
        }
        if id.contains(char::is_control) {
            complaints.push(|| format!("tenant `{}` has a control character in its id", id.escape_debug()));
        }
        *times.entry(id).or_default() += 1;
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for entry in listed {
        let id = entry.id.as_str();
        if let Some(&times) = times.get(id)
            && times > 1
            && seen.insert(id)
        {
            complaints.push(|| format!("tenant `{}` is listed {times} times", id.escape_debug()));
        }
    }
}

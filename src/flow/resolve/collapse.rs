//! One job for all tenants of one place.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use super::few::{Few, SHOWN, first_few};
use crate::domain::tenant::{Isolation, Tenant};

/// Makes one tenant of those that share a place: the first, with the others as its members. That is the rule for
/// [`Isolation::Shared`]; with any other isolation it is odd, and worth a warning.
pub(super) fn collapse(tenants: Vec<Tenant>, warnings: &mut Vec<String>) -> Vec<Tenant> {
    let mut job_of: HashMap<_, usize> = HashMap::with_capacity(tenants.len());
    let mut joins = Vec::with_capacity(tenants.len());
    for tenant in &tenants {
        let free = job_of.len();
        joins.push(match job_of.entry(&tenant.place) {
            Entry::Occupied(job) => Some(*job.get()),
            Entry::Vacant(entry) => {
                entry.insert(free);
                None
            }
        });
    }
    let mut odd: BTreeSet<usize> = BTreeSet::new();
    let mut out: Vec<Tenant> = Vec::with_capacity(job_of.len());
    for (tenant, join) in tenants.into_iter().zip(joins) {
        let Some(job) = join else {
            out.push(tenant);
            continue;
        };
        if tenant.isolation != Isolation::Shared || out[job].isolation != Isolation::Shared {
            odd.insert(job);
        }
        out[job].members.push(tenant.id);
    }
    let mut few = Few::default();
    for job in odd {
        let tenant = &out[job];
        few.push(|| {
            let ids = std::iter::once(&tenant.id).chain(&tenant.members);
            let ids = ids
                .take(SHOWN)
                .map(|id| format!("`{}`", id.escape_debug()))
                .collect();
            let ids = first_few(ids, tenant.members.len() + 1).join(", ");
            format!(
                "{ids} share {}, which is migrated once for all of them",
                tenant.place
            )
        });
    }
    warnings.extend(few.list());
    out
}

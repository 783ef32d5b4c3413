//! `herder plan`: what a run would do, tenants with the same way to go together.

use std::collections::BTreeMap;

use herder::{
    domain::revision::{Direction, Target},
    flow::enqueue::{self, Plan, Planned},
};
use serde::Serialize;

use super::{Setting, start::cannot};
use crate::{args, exit::Exit, output, render};

/// What a run would do.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) direction: Direction,
    /// As it was named.
    pub(crate) target: String,
    /// The revision that it means, where that is the same for all tenants. Null: it differs, or is the base.
    pub(crate) revision: Option<String>,
    /// How many tenants have nothing left to do.
    pub(crate) current: usize,
    /// How many have something to do.
    pub(crate) pending: usize,
    pub(crate) groups: Vec<Group>,
    pub(crate) unknown: Vec<Unknown>,
}

/// Tenants with the same way to go.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) tenants: Vec<String>,
    /// Whether they are at the target.
    pub(crate) current: bool,
    /// What is applied or undone, in order. Empty also where the tool does not list its revisions.
    pub(crate) pending: Vec<Pending>,
}

/// A revision that is to be applied or undone.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pending {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) file: Option<String>,
}

/// A tenant that cannot be planned for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Unknown {
    pub(crate) tenant: String,
    pub(crate) why: String,
    pub(crate) hint: Option<String>,
}

pub(crate) async fn run(setting: &Setting, args: &args::Plan) -> anyhow::Result<Exit> {
    let cx = setting.context(None).await?;
    let direction = match args.to {
        Target::Base | Target::Relative(..0) => Direction::Downgrade,
        _ if args.downgrade => Direction::Downgrade,
        _ => Direction::Upgrade,
    };
    let args::Selection { only, exclude } = &args.selection;
    let plan = match enqueue::plan(&cx, direction, &args.to, only, exclude).await {
        Ok(plan) => plan,
        Err(error) => return Err(cannot(&cx, "cannot plan", error).await),
    };
    for warning in &plan.warnings {
        output::warning(warning);
    }
    let report = report(&plan, direction, &args.to);
    if args.output.is_json() {
        output::json(&report)?;
    } else {
        output::data(&render::plan::render(&report))?;
    }
    let found = report.pending > 0 || !report.unknown.is_empty();
    Ok(if args.check && found {
        Exit::Found
    } else {
        Exit::Done
    })
}

fn report(plan: &Plan, direction: Direction, target: &Target) -> Report {
    let current = plan.tenants.iter().filter(|p| p.current).count();
    let unknown: Vec<Unknown> = plan.tenants.iter().filter_map(unknown).collect();
    Report {
        direction,
        target: target.to_string(),
        revision: plan.target.clone().flatten(),
        current,
        pending: plan.tenants.len() - current - unknown.len(),
        groups: groups(plan),
        unknown,
    }
}

/// Where from, where to, and over which revisions.
type Way<'a> = (Option<&'a str>, Option<&'a str>, &'a [String]);

/// In the order in which a way first appears among the tenants.
fn groups(plan: &Plan) -> Vec<Group> {
    let mut index: BTreeMap<Way<'_>, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for planned in plan.tenants.iter().filter(|p| p.unknown.is_none()) {
        let n = *index
            .entry((planned.from.as_deref(), planned.to.as_deref(), &planned.pending))
            .or_insert_with(|| {
                groups.push(Group {
                    from: planned.from.clone(),
                    to: planned.to.clone(),
                    tenants: Vec::new(),
                    current: planned.current,
                    pending: planned.pending.iter().map(|id| pending(plan, id)).collect(),
                });
                groups.len() - 1
            });
        groups[n].tenants.push(planned.tenant.id.clone());
    }
    groups
}

fn pending(plan: &Plan, id: &str) -> Pending {
    let revision = plan.history.get(id);
    Pending {
        id: id.to_owned(),
        label: revision.map(|r| r.label.clone()).unwrap_or_default(),
        file: revision.and_then(|r| r.file.clone()),
    }
}

fn unknown(planned: &Planned) -> Option<Unknown> {
    planned.unknown.as_ref().map(|error| Unknown {
        tenant: planned.tenant.id.clone(),
        why: error.to_string(),
        hint: error.hint(),
    })
}

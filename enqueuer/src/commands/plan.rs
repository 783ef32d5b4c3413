//! `herder plan`: what a run would do, tenants with the same way to go together.

use std::collections::BTreeMap;

use herder::{
    domain::{
        plan::{self, PlanStep, StepForm},
        revision::{Direction, Revision, Target},
    },
    flow::enqueue::{self, Planned, RunPlan},
    session::literal,
};
use serde::Serialize;

use super::{
    Setting,
    target::{found, must_lead},
};
use crate::{args, exit::Exit, output, render, signals::Interrupts};

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
    /// What stands for the tenant's schema in the SQL of a plan.
    pub(crate) schema_placeholder: &'static str,
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
    /// How they are migrated. Null: they are at the target.
    pub(crate) by: Option<By>,
    /// Why they are migrated live.
    pub(crate) why: Option<String>,
    /// The plan's id: the hash of its content.
    pub(crate) plan: Option<String>,
    /// What the plan does, in order.
    pub(crate) steps: Vec<Step>,
}

/// How tenants are migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// By SQL that is the same for all of them, and needs no tool.
    Plan,
    /// By the migration tool itself, one by one.
    Live,
}

/// A piece of a plan.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// The revisions that are done with it. Empty where a revision takes several steps, but for its last.
    pub(crate) revisions: Vec<String>,
    /// Whether it is one transaction, with its own word in the ledger.
    pub(crate) transactional: bool,
    /// Its statements, with --sql.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sql: Option<String>,
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
    let direction = args.to.direction(args.downgrade);
    must_lead(direction, &args.to, || {
        "leave out --downgrade, or name a target with --to".into()
    })?;
    let cx = setting.context(None).await?;
    let wanted = args.selection.wanted();
    let planned = enqueue::plan(&cx, direction, &args.to, &wanted);
    let mut interrupts = Interrupts::new()?;
    let Some(plan) = found(&cx, &mut interrupts, "cannot plan", direction, planned).await? else {
        return Ok(Exit::Interrupted);
    };
    for warning in &plan.warnings {
        output::warning(warning);
    }
    let report = report(&plan, direction, &args.to, args.sql);
    if args.output.is_json() {
        output::answer(output::json(&report))?;
    } else if args.sql {
        output::answer(output::data(&render::plan_sql::render(&report)))?;
    } else {
        output::answer(output::data(&render::plan::render(&report)))?;
    }
    let found = report.pending > 0 || !report.unknown.is_empty();
    Ok(if args.check && found {
        Exit::Found
    } else {
        Exit::Done
    })
}

fn report(plan: &RunPlan, direction: Direction, target: &Target, sql: bool) -> Report {
    let current = plan.tenants.iter().filter(|p| p.current).count();
    let unknown: Vec<Unknown> = plan.tenants.iter().filter_map(unknown).collect();
    Report {
        direction,
        target: target.to_string(),
        revision: plan.target.clone().flatten(),
        current,
        pending: plan.tenants.len() - current - unknown.len(),
        groups: groups(plan, direction, sql),
        unknown,
        schema_placeholder: plan::SCHEMA,
    }
}

/// What tenants of one group have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    from: Option<&'a str>,
    to: Option<&'a str>,
    pending: &'a [String],
    /// Two isolations may have two plans.
    way: Option<usize>,
    /// One with an odd name runs live where all others have a plan.
    by: Option<By>,
}

/// In the order in which a way first appears among the tenants.
fn groups(plan: &RunPlan, direction: Direction, sql: bool) -> Vec<Group> {
    let mut index: BTreeMap<Key<'_>, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for planned in plan.tenants.iter().filter(|p| p.unknown.is_none()) {
        let way = planned.way.and_then(|way| plan.ways.get(way));
        let offer = way.map(|way| way.plan_for(&planned.tenant.place));
        let key = Key {
            from: planned.from.revision(),
            to: planned.to.revision(),
            pending: &planned.pending,
            way: planned.way,
            by: offer.map(|offer| if offer.is_ok() { By::Plan } else { By::Live }),
        };
        let by = key.by;
        let n = *index.entry(key).or_insert_with(|| {
            let by_plan = offer.and_then(Result::ok);
            groups.push(Group {
                from: planned.from.to_revision(),
                to: planned.to.to_revision(),
                tenants: Vec::new(),
                current: planned.current,
                pending: planned
                    .pending
                    .iter()
                    .map(|id| pending(plan, direction, id))
                    .collect(),
                by,
                why: offer.and_then(Result::err).map(str::to_owned),
                plan: by_plan.map(plan::Plan::id),
                steps: by_plan.map_or_else(Vec::new, |plan| steps(plan, sql)),
            });
            groups.len() - 1
        });
        groups[n].tenants.push(planned.tenant.id.clone());
    }
    groups
}

/// The steps of a plan, with their SQL if that is asked for.
fn steps(plan: &plan::Plan, sql: bool) -> Vec<Step> {
    let step = |step: &PlanStep| {
        let transactional = matches!(step.form, StepForm::Transaction { .. });
        let set = if transactional { "SET LOCAL" } else { "SET" };
        let settings = plan.session.settings.iter();
        let settings = settings.map(|(name, value)| format!("{set} {name} = {};\n", literal(value)));
        Step {
            revisions: step.revisions.clone(),
            transactional,
            sql: sql.then(|| settings.chain(step.form.statements().map(ended)).collect()),
        }
    };
    plan.steps.iter().map(step).collect()
}

/// Statements with their end. A comment on the last line must not swallow the semicolon.
fn ended(sql: &str) -> String {
    let sql = sql.trim();
    let last = sql.lines().last().unwrap_or_default();
    match last {
        _ if last.contains("--") => format!("{sql}\n;\n"),
        _ if last.ends_with(';') => format!("{sql}\n"),
        _ => format!("{sql};\n"),
    }
}

fn pending(plan: &RunPlan, direction: Direction, id: &str) -> Pending {
    let revision = plan.history.get(id);
    let file = |r: &Revision| match direction {
        Direction::Upgrade => r.file.clone(),
        Direction::Downgrade => r.down_file.clone().or_else(|| r.file.clone()),
    };
    Pending {
        id: id.to_owned(),
        label: revision.map(|r| r.label.clone()).unwrap_or_default(),
        file: revision.and_then(file),
    }
}

pub(crate) fn unknown(planned: &Planned) -> Option<Unknown> {
    planned.unknown.as_ref().map(|error| Unknown {
        tenant: planned.tenant.id.clone(),
        why: error.to_string(),
        hint: error.hint(),
    })
}

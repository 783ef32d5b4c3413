//! `herder rehearse`: the plans of a run, applied in some of its tenants and rolled back.

use std::collections::BTreeMap;

use herder::{
    domain::revision::Direction,
    flow::{
        enqueue::{self, RunPlan},
        rehearse::{self, Forecast, Options, Tried},
    },
};
use serde::Serialize;

use super::{
    Setting,
    plan::{Unknown, unknown},
    target::{found, must_lead},
};
use crate::{args, exit::Exit, output, render, signals::Interrupts};

/// What a rehearsal found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) direction: Direction,
    /// As it was named.
    pub(crate) target: String,
    /// The revision that it means, where that is the same for all tenants. Null: it differs, or is the base.
    pub(crate) revision: Option<String>,
    /// How many tenants have something to do.
    pub(crate) pending: usize,
    /// How many have nothing left to do.
    pub(crate) current: usize,
    pub(crate) counts: BTreeMap<Forecast, usize>,
    /// The tenants that were tried.
    pub(crate) tenants: Vec<Tried>,
    /// Those that a run migrates live: nothing of that can be rolled back.
    pub(crate) live: Vec<Live>,
    pub(crate) unknown: Vec<Unknown>,
}

/// Tenants that are migrated live for one reason.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Live {
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) why: String,
    pub(crate) tenants: Vec<String>,
}

impl Report {
    pub(crate) fn count(&self, forecast: Forecast) -> usize {
        self.counts.get(&forecast).copied().unwrap_or_default()
    }
}

pub(crate) async fn run(setting: &Setting, args: &args::Rehearse) -> anyhow::Result<Exit> {
    let direction = args.to.direction(args.downgrade);
    must_lead(direction, &args.to, || {
        "leave out --downgrade, or name a target with --to".into()
    })?;
    let cx = setting.context(None).await?;
    let options = Options {
        sample: (!args.all).then_some(args.sample as usize),
        lock_timeout: args.lock_timeout,
        statement_timeout: args.statement_timeout,
    };
    let wanted = args.selection.wanted();
    let rehearsed = async {
        let plan = enqueue::plan(&cx, direction, &args.to, &wanted).await?;
        for warning in &plan.warnings {
            output::warning(warning);
        }
        let tried = rehearse::rehearse(&cx, &plan, options).await?;
        Ok((plan, tried))
    };
    let mut interrupts = Interrupts::new()?;
    let Some((plan, tenants)) = found(&cx, &mut interrupts, "cannot rehearse", direction, rehearsed).await?
    else {
        return Ok(Exit::Interrupted);
    };
    let report = report(&plan, direction, args.to.to_string(), tenants);
    if args.output.is_json() {
        output::answer(output::json(&report))?;
    } else {
        output::answer(output::data(&render::rehearse::render(&report)))?;
    }
    let found = report.count(Forecast::WouldFail) > 0 || !report.unknown.is_empty();
    Ok(if found { Exit::Found } else { Exit::Done })
}

fn report(plan: &RunPlan, direction: Direction, target: String, tenants: Vec<Tried>) -> Report {
    let current = plan.tenants.iter().filter(|p| p.current).count();
    let unknown: Vec<Unknown> = plan.tenants.iter().filter_map(unknown).collect();
    let of = |forecast| tenants.iter().filter(|t| t.forecast == forecast).count();
    let counts = [
        Forecast::WouldSucceed,
        Forecast::WouldFail,
        Forecast::NotRehearsed,
    ];
    Report {
        direction,
        target,
        revision: plan.target.clone().flatten(),
        pending: plan.tenants.len() - current - unknown.len(),
        current,
        counts: counts.into_iter().map(|f| (f, of(f))).collect(),
        live: live(plan),
        tenants,
        unknown,
    }
}

/// In the order in which a reason first appears among the tenants.
fn live(plan: &RunPlan) -> Vec<Live> {
    let mut live: Vec<Live> = Vec::new();
    for planned in &plan.tenants {
        let way = planned.way.and_then(|way| plan.ways.get(way));
        let Some(Err(why)) = way.map(|way| way.plan_for(&planned.tenant.place)) else {
            continue;
        };
        let same = |l: &&mut Live| {
            (l.from.as_deref(), l.to.as_deref(), l.why.as_str())
                == (planned.from.revision(), planned.to.revision(), why)
        };
        match live.iter_mut().find(same) {
            Some(group) => group.tenants.push(planned.tenant.id.clone()),
            None => live.push(Live {
                from: planned.from.to_revision(),
                to: planned.to.to_revision(),
                why: why.to_owned(),
                tenants: vec![planned.tenant.id.clone()],
            }),
        }
    }
    live
}

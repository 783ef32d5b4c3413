//! `herder tenants`: who is on the list, and where each of them stands.

use std::collections::BTreeMap;

use herder::{
    domain::{
        revision::{Direction, HistoryError, Position},
        tenant::{Isolation, Tenant},
    },
    flow::{
        enqueue::{self, EnqueueError, Planned},
        resolve::resolve_selected,
    },
    tenant_error::TenantError,
};
use serde::Serialize;

use super::{
    Setting,
    target::{found, must_lead},
};
use crate::{args, exit::Exit, output, render, signals::Interrupts};

/// All tenants, with sums where their ledgers were read.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) tenants: Vec<Row>,
    pub(crate) counts: BTreeMap<Status, usize>,
}

/// One tenant. What is not known is null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) isolation: Isolation,
    pub(crate) server: String,
    pub(crate) database: String,
    pub(crate) schema: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) status: Option<Status>,
    pub(crate) why: Option<String>,
}

/// Where a tenant stands, seen from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// At the target or beyond it: an upgrade has nothing to do.
    Current,
    /// Something is pending.
    Behind,
    /// It has no ledger, or an empty one.
    NeverMigrated,
    /// Its ledger cannot be read, or makes no sense; or there is no head to compare it with.
    Unknown,
}

impl Status {
    pub(crate) const ALL: [Self; 4] = [Self::Current, Self::Behind, Self::NeverMigrated, Self::Unknown];

    fn of(planned: &Planned) -> Self {
        match planned {
            // Whatever the head is, this one has none of it.
            Planned {
                from: Position::Base,
                unknown:
                    Some(TenantError::History(HistoryError::NotListed(_) | HistoryError::SeveralHeads(_))),
                ..
            } => Self::NeverMigrated,
            Planned { unknown: Some(_), .. } => Self::Unknown,
            planned if planned.current => Self::Current,
            Planned {
                from: Position::Base, ..
            } => Self::NeverMigrated,
            _ => Self::Behind,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::NeverMigrated => "never migrated",
            Self::Unknown => "unknown",
        }
    }
}

pub(crate) async fn run(setting: &Setting, args: &args::Tenants) -> anyhow::Result<Exit> {
    let report = match args.revisions {
        true => inspected(setting, args).await?,
        false => Some(listed(setting, args).await?),
    };
    let Some(report) = report else {
        return Ok(Exit::Interrupted);
    };
    if args.output.is_json() {
        output::json(&report)?;
    } else {
        output::data(&render::tenants::render(&report))?;
    }
    Ok(Exit::Done)
}

/// From the source alone: neither the control database nor a tenant is asked.
async fn listed(setting: &Setting, args: &args::Tenants) -> anyhow::Result<Report> {
    let cx = setting.context_unchecked()?;
    let listed = cx.source.list().await.map_err(EnqueueError::from)?;
    let resolved =
        resolve_selected(listed, &cx.servers, &args.selection.wanted()).map_err(EnqueueError::from)?;
    for warning in &resolved.warnings {
        output::warning(warning);
    }
    Ok(Report {
        tenants: resolved.tenants.iter().flat_map(|t| rows(t, None)).collect(),
        counts: BTreeMap::new(),
    })
}

/// With their ledgers, as a run would see them. None: it was interrupted.
async fn inspected(setting: &Setting, args: &args::Tenants) -> anyhow::Result<Option<Report>> {
    let direction = Direction::Upgrade;
    if let Some(target) = &args.to {
        must_lead(direction, target, || {
            format!("`herder plan --to {target}` shows what a downgrade would do")
        })?;
    }
    let cx = setting.context(None).await?;
    let wanted = args.selection.wanted();
    let survey = enqueue::survey(&cx, direction, args.to.as_ref(), &wanted);
    let what = "cannot read the tenants' revisions";
    let Some(plan) = found(&cx, &mut Interrupts::new()?, what, direction, survey).await? else {
        return Ok(None);
    };
    for warning in &plan.warnings {
        output::warning(warning);
    }
    let tenants: Vec<Row> = plan
        .tenants
        .iter()
        .flat_map(|p| rows(&p.tenant, Some(p)))
        .collect();
    let of = |status| tenants.iter().filter(|row| row.status == Some(status)).count();
    let counts = Status::ALL
        .into_iter()
        .map(|status| (status, of(status)))
        .collect();
    Ok(Some(Report { tenants, counts }))
}

/// A row for the tenant, and for each that shares its place.
fn rows(tenant: &Tenant, planned: Option<&Planned>) -> Vec<Row> {
    let status = planned.map(Status::of);
    let why = planned.filter(|_| status == Some(Status::Unknown));
    let row = |id: &String| Row {
        id: id.clone(),
        isolation: tenant.isolation,
        server: tenant.place.server.clone(),
        database: tenant.place.database.clone(),
        schema: tenant.place.schema.clone(),
        revision: planned.and_then(|p| p.from.to_revision()),
        status,
        why: why.and_then(|p| p.unknown.as_ref()).map(ToString::to_string),
    };
    std::iter::once(&tenant.id)
        .chain(&tenant.members)
        .map(row)
        .collect()
}

//! The distinct ways of a fleet: thousands of tenants stand at the same few revisions.

use std::collections::HashMap;

use super::{
    EnqueueError,
    survey::{Planned, Way},
};
use crate::{
    domain::{
        half::Half,
        revision::{Direction, History, HistoryError, Ledger, Position, Standing, Target},
        tenant::{Isolation, Place, Tenant},
    },
    flow::{
        context::Context,
        inspect::Read,
        own_urls::OwnUrls,
        prove::{Refuted, prove},
    },
    runner::Offer,
    tenant_error::TenantError,
};

/// A ledger, an isolation, and where that goes.
pub(super) type DistinctWay = (Ledger, Isolation, Option<String>);

/// Asks the runner for plans, and has those proven that need it, each beside the first tenant that it is for.
pub(super) async fn offers(
    cx: &Context,
    direction: Direction,
    ways: Vec<DistinctWay>,
    tenants: &mut [Planned],
    own_urls: &OwnUrls,
) -> Result<Vec<Way>, EnqueueError> {
    let mut offered: Vec<Way> = Vec::with_capacity(ways.len());
    let mut rendered: HashMap<DistinctWay, Offer> = HashMap::new();
    let mut refuted = Refuted::default();
    for (number, way) in ways.into_iter().enumerate() {
        let (before, isolation, to) = way.clone();
        let asked = match rendered.get(&way) {
            Some(offer) => Ok(offer.clone()),
            None => cx.runner.plan(direction, &before, to.as_deref(), isolation).await,
        };
        let mut offer = match asked {
            Ok(offer) => offer,
            Err(e @ TenantError::Setup { .. }) => return Err(e.into()),
            // Whose plans are written by a person has no other way to try.
            Err(e) if !cx.runner.is_rendered() => {
                for planned in tenants.iter_mut().filter(|p| p.way == Some(number)) {
                    (planned.way, planned.unknown) = (None, Some(e.clone()));
                }
                Offer::Live { why: e.to_string() }
            }
            // What keeps a plan from being made may fail the tenants, too: then one by one, and with their own reasons.
            Err(e) => Offer::Live { why: e.to_string() },
        };
        rendered.entry(way).or_insert_with(|| offer.clone());
        let first = tenants.iter().find(|t| t.way == Some(number));
        if let (Offer::Plan(plan), Some(first)) = (&offer, first)
            && cx.runner.is_rendered()
        {
            let first = &first.tenant;
            let place = (&first.place, own_urls.get(first));
            offer = prove(cx, plan.clone(), to.as_deref(), place, &mut refuted).await?;
            if cx.stop.is_cancelled() {
                return Err(EnqueueError::Stopped);
            }
        }
        offered.push(Way {
            before,
            to,
            isolation,
            offer,
        });
    }
    Ok(offered)
}

/// The distinct ways, in the order in which they first appear.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) known: Vec<DistinctWay>,
    index: HashMap<(Ledger, Isolation, Option<String>), usize>,
}

impl Ways {
    fn number(
        &mut self,
        ledger: Ledger,
        isolation: Isolation,
        server: Option<String>,
        to: &Option<String>,
    ) -> usize {
        let known = &mut self.known;
        *self
            .index
            .entry((ledger, isolation, server))
            .or_insert_with_key(|(ledger, isolation, _)| {
                known.push((ledger.clone(), *isolation, to.clone()));
                known.len() - 1
            })
    }
}

/// Where a ledger goes, whether it is there, and over which revisions.
type Thought = (Option<String>, bool, Vec<String>);

/// Thousands of tenants stand at the same few revisions: each is thought through once.
pub(super) struct Planner<'a> {
    pub(super) history: &'a History,
    /// What is half applied, and where.
    pub(super) halves: &'a HashMap<Place, Half>,
    pub(super) direction: Direction,
    pub(super) target: &'a Target,
    pub(super) absolute: Option<&'a Option<String>>,
    pub(super) known: HashMap<Ledger, Result<Thought, HistoryError>>,
    /// A plan that is rendered is fitted to what sessions begin with, and each server has its own mind about that.
    pub(super) by_server: bool,
    pub(super) ways: Ways,
}

impl Planner<'_> {
    pub(super) fn plan(&mut self, tenant: Tenant, read: Read) -> Planned {
        let unknown = |from, error| Planned {
            tenant: tenant.clone(),
            from,
            to: self.absolute.cloned().map_or(Position::Unknown, Position::known),
            current: false,
            pending: Vec::new(),
            way: None,
            piece: None,
            is_mended: false,
            unknown: Some(error),
        };
        let ledger = match read {
            Ok(ledger) => ledger,
            Err(e) => return unknown(Position::Unknown, e),
        };
        let from = Position::known(self.history.describe(&ledger));
        let (history, direction, target) = (self.history, self.direction, self.target);
        let thought = self.known.entry(ledger.clone()).or_insert_with(|| {
            let to = history.resolve(target, &ledger)?;
            let pending = history.pending(direction, to.as_deref(), &ledger)?;
            let current = history.standing(direction, to.as_deref(), &ledger)? == Standing::AtTarget;
            Ok((to, current, pending.into_iter().map(|r| r.id.clone()).collect()))
        });
        let thought = thought.clone();
        if let Ok((.., pending)) = &thought
            && let Some(half) = history.stuck(direction, pending, &ledger)
        {
            return unknown(from, TenantError::Dirty(half));
        }
        let (to, current, pending) = match thought {
            Ok(thought) => thought,
            Err(e) => return unknown(from, e.into()),
        };
        let half = self.halves.get(&tenant.place);
        let half = half.filter(|half| !half.revisions.is_empty());
        let left = half.map(|half| half.still(history, &ledger)).unwrap_or_default();
        let bar = half.filter(|half| !left.is_empty() && half.bars(direction, !pending.is_empty()));
        let mut planned = Planned {
            way: None,
            tenant,
            from,
            to: Position::known(to),
            current,
            piece: bar
                .filter(|bar| bar.direction == direction)
                .and_then(|bar| bar.piece.clone()),
            is_mended: half.is_some() && left.is_empty(),
            unknown: None,
            pending,
        };
        if let (Some(bar), None) = (bar, &planned.piece) {
            planned.leave(left, bar.direction);
        } else if !current {
            let server = self.by_server.then(|| planned.tenant.place.server.clone());
            let (isolation, to) = (planned.tenant.isolation, planned.to.to_revision());
            planned.way = Some(self.ways.number(ledger, isolation, server, &to));
        }
        planned
    }
}

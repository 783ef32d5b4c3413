//! Is a server fit for its tenants: has it room for the budget, and is the role right?

use std::{collections::BTreeSet, time::Duration};

use herder::{
    config::RunnerConfig,
    database_url::DatabaseUrl,
    domain::{
        revision::{Direction, Ledger},
        tenant::Tenant,
    },
    flow::{
        budget::{self, Arithmetic, DEFAULT_BUDGET, Survey},
        context::Context,
        inspect::OwnUrls,
        locks, pooler,
        service::Service,
    },
    runner::{Offer, RunnerError},
};

use super::{
    Finding, Level,
    reading::{Reading, some},
    role::Needs,
};
use crate::render::words::count;

/// How long to wait for the connection that may ask the server. Without it, one more would be one too many.
const PATIENCE: Duration = Duration::from_secs(15);

/// A server, with the tenants that live there.
pub(super) struct Server<'a> {
    pub(super) cx: &'a Context,
    pub(super) name: &'a str,
    pub(super) tenants: &'a [&'a Tenant],
    pub(super) own_urls: &'a OwnUrls,
    /// The budget that a person has set.
    pub(super) set_by_hand: Option<i32>,
}

impl Server<'_> {
    pub(super) async fn check(&self) -> Vec<Finding> {
        let reading = Reading::of(self.cx, self.tenants, self.own_urls).await;
        let there = reading.there(self.tenants);
        // One tenant leads there.
        let Some(first) = there.first() else {
            return reading.finding(self.title()).into_iter().collect();
        };
        let own = self.own_urls.get(&first.id).filter(|_| first.own_url);
        let url = match self.cx.servers.url_for(&first.place, own) {
            Ok(url) => url,
            Err(error) => return vec![Finding::problem(self.title(), error)],
        };
        let Survey {
            mut sum,
            owners,
            closed,
        } = match self.survey(&url, first).await {
            Ok(surveyed) => surveyed,
            // That no tenant can be read there goes without saying.
            Err(finding) => return vec![finding],
        };
        if self
            .tenants
            .iter()
            .any(|t| t.place.database != first.place.database)
        {
            // One of many databases: its limit is its own.
            sum.database = None;
        }
        if let Some(budget) = self.set_by_hand {
            sum.budget = budget;
        }
        let mut found = vec![self.arithmetic(&url, &sum)];
        found.extend(reading.finding(self.title()));
        found.extend(self.closed(&sum, first, closed));
        found.extend(self.role(&sum));
        found.extend(self.locks(&sum, first).await);
        let needs = Needs {
            server: self.name,
            tenants: &there,
            role: &sum.role,
            owners: &owners,
            budget: sum.budget,
            proves: self.cx.runner.needs_proof(),
        };
        found[0].sql = needs.sql();
        found
    }

    fn title(&self) -> String {
        format!("server {}", self.name)
    }

    /// Over the connection that is counted for such things, where runs know of one.
    async fn survey(&self, url: &DatabaseUrl, first: &Tenant) -> Result<Survey, Finding> {
        let service = Service::acquire(&self.cx.pool, self.name);
        let Ok(service) = tokio::time::timeout(PATIENCE, service).await else {
            let text = format!("the one connection that may ask it was in use for {PATIENCE:?}");
            let hint = "another herder inspects, proves or rehearses there: check again when it is done";
            return Err(Finding::new(self.title(), Level::Problem, text).hint(hint));
        };
        let surveyed = self.ask(url, first).await;
        // Without control tables nothing takes turns. That they are missing was said.
        if let Ok(service) = service {
            service.release().await;
        }
        surveyed.map_err(|error| Finding::problem(self.title(), error))
    }

    async fn ask(&self, url: &DatabaseUrl, first: &Tenant) -> Result<Survey, RunnerError> {
        let wanted = self.cx.servers.budget(self.name);
        let there = self
            .tenants
            .iter()
            .filter(|t| t.place.database == first.place.database);
        let schemas: Vec<&str> = there.filter_map(|t| t.place.schema.as_deref()).collect();
        let surveyed = budget::survey(url, wanted, &schemas).await?;
        // Two connections at once are one too many while runs are on. One alone has been looked at.
        if surveyed.sum.ours == 0
            && let Some(pooled) = pooler::look(url).await?
        {
            return Err(RunnerError::Pooled(pooled.to_string()));
        }
        Ok(surveyed)
    }

    fn arithmetic(&self, url: &DatabaseUrl, sum: &Arithmetic) -> Finding {
        let headroom = sum.headroom();
        let mut text = format!(
            "{}: {} connections less {} reserved and {} not ours are {}",
            url.address(),
            sum.max_connections,
            sum.reserved,
            sum.not_ours,
            sum.max_connections - sum.reserved - sum.not_ours,
        );
        if let Some(limit) = sum.role.limit.filter(|_| !sum.role.superuser) {
            text += &format!("; role `{}` may have {limit}", sum.role.name);
        }
        if let Some(database) = &sum.database {
            text += &format!("; database `{}` may have {}", database.name, database.limit);
        }
        text += &match self.set_by_hand {
            Some(budget) => format!("; the budget is {budget} (set by hand)"),
            None => format!(
                "; the budget is {} ({})",
                sum.budget,
                self.cx.servers.budget(self.name).unwrap_or(DEFAULT_BUDGET)
            ),
        };
        let needed = i32::from(self.cx.runner.connections());
        let change = match self.set_by_hand {
            Some(_) => format!("`herder budget {} --set N`", self.name),
            None => format!("[servers.{}] `budget`", self.name),
        };
        if sum.budget > headroom {
            return Finding::new(self.title(), Level::Problem, text).hint(format!(
                "there is room for {headroom} now: lower {change}, or the server is full before it is used up"
            ));
        }
        if sum.budget < needed {
            return Finding::new(self.title(), Level::Problem, text)
                .hint(format!("one attempt needs {needed}: raise {change}"));
        }
        Finding::new(self.title(), Level::Ok, text)
    }

    /// The schemas in which the first tenant's role can do nothing. A ledger that is not there yet hides that: it reads as
    /// one of a tenant that was never migrated. A command may come as somebody else.
    fn closed(&self, sum: &Arithmetic, first: &Tenant, mut closed: Vec<String>) -> Option<Finding> {
        if matches!(self.cx.config.runner, RunnerConfig::Command(_)) {
            return None;
        }
        let as_it = |t: &&&Tenant| t.id == first.id || !(t.own_url || first.own_url);
        let theirs: BTreeSet<&str> = self
            .tenants
            .iter()
            .filter(as_it)
            .map(|t| t.place.schema.as_deref().unwrap_or("public"))
            .collect();
        closed.retain(|schema| theirs.contains(schema.as_str()));
        if closed.is_empty() {
            return None;
        }
        let text = format!(
            "role `{}` may not use, or make anything in, {}: {}",
            sum.role.name,
            count(closed.len() as u64, "schema"),
            some(&closed, ", ")
        );
        Some(
            Finding::new(self.title(), Level::Problem, text)
                .hint("have the DBA run the SQL below, or give [servers] a url with a role that may"),
        )
    }

    fn role(&self, sum: &Arithmetic) -> Vec<Finding> {
        let (role, name) = (&sum.role, &sum.role.name);
        let mut found = Vec::new();
        if role.superuser {
            let text = format!("role `{name}` is a superuser: the server would hold no limit against it");
            found.push(
                Finding::new(self.title(), Level::Warn, text)
                    .hint("the SQL below makes a role that is enough, with the budget as its limit"),
            );
        }
        if role.not_ours > 0 {
            let text = format!(
                "{} of role `{name}` are not Herder's",
                count(u64::from(role.not_ours.unsigned_abs()), "session")
            );
            found.push(
                Finding::new(self.title(), Level::Warn, text)
                    .hint("give Herder a role of its own: a limit on this one would count them, too"),
            );
        }
        found
    }

    /// Whether the server's table of locks is large enough for all that may be at work at once.
    async fn locks(&self, sum: &Arithmetic, first: &Tenant) -> Option<Finding> {
        let history = self.cx.runner.history().await.ok()?;
        let heads = history.heads();
        let head = heads.first().map(|head| head.to_string());
        let base = Ledger::default();
        let offer = self
            .cx
            .runner
            .plan(Direction::Upgrade, &base, head.as_deref(), first.isolation);
        let most = match offer.await {
            Ok(Offer::Plan(plan)) => locks::most(&plan),
            _ => 0,
        };
        let needed = most * i64::from(sum.budget) + locks::OF_INSPECTION;
        if needed <= sum.locks {
            return None;
        }
        let text = format!(
            "its table holds {} locks; the largest migration takes about {most}, {} at a time, and the reading of ledgers {}",
            sum.locks,
            sum.budget,
            locks::OF_INSPECTION
        );
        Some(Finding::new(self.title(), Level::Warn, text).hint(
            "raise max_locks_per_transaction, lower the budget, or split the migration: \"out of shared memory\" fails tenants",
        ))
    }
}

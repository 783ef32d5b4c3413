//! Is a server fit for its tenants: has it room for the budget, and is the role right?

use std::{collections::BTreeSet, time::Duration};

use herder::{
    config::RunnerConfig,
    database_url::DatabaseUrl,
    domain::{
        revision::{Direction, Ledger},
        tenant::Tenant,
        wave::Amount,
    },
    flow::{
        budget::{self, Survey},
        context::Context,
        locks,
        own_urls::OwnUrls,
        service::Service,
    },
    runner::Offer,
    session::{
        arithmetic::{Arithmetic, DEFAULT_BUDGET},
        pooler,
    },
    tenant_error::{READ_ONLY, TenantError},
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
        let url = match self.own_urls.lead_to(first, &self.cx.servers) {
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
        found.extend(self.control(&sum));
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
            proves: self.cx.runner.prover().is_some_and(|prover| prover.needs_proof()),
        };
        found[0].sql = needs.sql();
        found
    }

    fn title(&self) -> String {
        format!("server {}", self.name)
    }

    /// Over the connection that is counted for such things, where runs know of one.
    async fn survey(&self, url: &DatabaseUrl, first: &Tenant) -> Result<Survey, Finding> {
        let service = Service::acquire(self.cx, self.name);
        let Ok(service) = tokio::time::timeout(PATIENCE, service).await else {
            let text = format!("the inspection connection to this server was busy for {PATIENCE:?}");
            let hint = "another herder command is inspecting, proving or rehearsing there: check again when it has finished";
            return Err(Finding::new(self.title(), Level::Problem, text).hint(hint));
        };
        let surveyed = self.ask(service.as_ref().ok(), url, first).await;
        // Without control tables nothing takes turns. That they are missing was said.
        if let Ok(service) = service {
            service.release().await;
        }
        surveyed.map_err(|error| Finding::problem(self.title(), error))
    }

    async fn ask(
        &self,
        service: Option<&Service>,
        url: &DatabaseUrl,
        first: &Tenant,
    ) -> Result<Survey, TenantError> {
        let wanted = self.cx.servers.budget(self.name);
        let there = self
            .tenants
            .iter()
            .filter(|t| t.place.database == first.place.database);
        let schemas: Vec<&str> = there.filter_map(|t| t.place.schema.as_deref()).collect();
        let surveyed = budget::survey(self.cx, service, url, wanted, &schemas).await?;
        // Two connections at once are one too many while runs are on. One alone has been looked at.
        if surveyed.sum.ours == 0
            && let Some(pooled) = pooler::look(url, &self.cx.mark).await?
        {
            return Err(TenantError::Pooled(pooled.to_string()));
        }
        Ok(surveyed)
    }

    fn arithmetic(&self, url: &DatabaseUrl, sum: &Arithmetic) -> Finding {
        let headroom = sum.headroom();
        let mut text = format!(
            "{}: max_connections {} - {} reserved - {} used by others = {} available",
            url.address(),
            sum.max_connections,
            sum.reserved,
            sum.not_ours,
            sum.max_connections - sum.reserved - sum.not_ours,
        );
        if let Some(limit) = sum.role.limit.filter(|_| !sum.role.superuser) {
            text += &format!("; role `{}` has a limit of {limit}", sum.role.name);
        }
        if let Some(database) = &sum.database {
            text += &format!("; database `{}` has a limit of {}", database.name, database.limit);
        }
        text += &match self.set_by_hand {
            Some(budget) => format!("; budget {budget} (set by `herder budget`)"),
            None => match self.cx.servers.budget(self.name).unwrap_or(DEFAULT_BUDGET) {
                Amount::Count(_) => format!("; budget {}", sum.budget),
                share => format!("; budget {} ({share})", sum.budget),
            },
        };
        let needed = i32::from(self.cx.runner.connections());
        let change = self.change();
        if sum.budget > headroom {
            return Finding::new(self.title(), Level::Problem, text).hint(format!(
                "connections available now: {headroom}; lower {change}, or the server fills up before the budget is used"
            ));
        }
        if sum.budget < needed {
            return Finding::new(self.title(), Level::Problem, text)
                .hint(format!("one job needs {needed} connections: raise {change}"));
        }
        Finding::new(self.title(), Level::Ok, text)
    }

    /// How the budget that counts is changed.
    fn change(&self) -> String {
        match self.set_by_hand {
            Some(_) => format!("`herder budget {} --set N`", self.name),
            None => format!("[servers.{}] `budget`", self.name),
        }
    }

    /// Whether the budget has room for a worker's own connections, where the control database is on this server. One that
    /// has no room for an attempt alone was complained of.
    fn control(&self, sum: &Arithmetic) -> Option<Finding> {
        let attempt = self.cx.runner.connections();
        let least = budget::least_with_control(attempt);
        let is_shared = self.cx.servers.control_server() == Some(self.name);
        if !is_shared || !(i32::from(attempt)..least).contains(&sum.budget) {
            return None;
        }
        let text = format!(
            "the control database is on this server, and a budget of {} has no room for a worker's own two connections to it: \
             they come on top",
            sum.budget
        );
        Some(Finding::new(self.title(), Level::Warn, text).hint(format!(
            "raise {} to {least} or more, or leave room on the server for them",
            self.change()
        )))
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
            "role `{}` lacks USAGE or CREATE on {}: {}",
            sum.role.name,
            count(closed.len() as u64, "schema"),
            some(&closed, ", ")
        );
        Some(
            Finding::new(self.title(), Level::Problem, text)
                .hint("have the DBA run the SQL below, or use a role with these rights in [servers] `url`"),
        )
    }

    fn role(&self, sum: &Arithmetic) -> Vec<Finding> {
        let (role, name) = (&sum.role, &sum.role.name);
        let mut found = Vec::new();
        if role.superuser {
            let text = format!("role `{name}` is a superuser, so its CONNECTION LIMIT is not enforced");
            found.push(Finding::new(self.title(), Level::Warn, text).hint(
                "the SQL below creates a role with the rights that are needed, and the budget as its limit",
            ));
        }
        if role.read_only {
            let text = format!("the transactions of role `{name}` take no changes unless they say otherwise");
            found.push(Finding::new(self.title(), Level::Warn, text).hint(READ_ONLY));
        }
        if role.not_ours > 0 {
            let text = format!(
                "role `{name}` is not Herder's alone: {} of it from other programs",
                count(u64::from(role.not_ours.unsigned_abs()), "session")
            );
            found.push(
                Finding::new(self.title(), Level::Warn, text)
                    .hint("use a separate role for Herder: a CONNECTION LIMIT on this one would count those sessions, too"),
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
            "the lock table holds {} locks, but up to {needed} may be needed: about {most} for the largest migration, {} at \
             a time, and {} for reading ledgers",
            sum.locks,
            sum.budget,
            locks::OF_INSPECTION
        );
        Some(Finding::new(self.title(), Level::Warn, text).hint(
            "raise max_locks_per_transaction, lower the budget, or split the migration: otherwise tenants fail with \"out of shared memory\"",
        ))
    }
}

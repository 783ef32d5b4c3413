//! Can the tenants' ledgers be read, as a run reads them first of all?

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use herder::{
    domain::tenant::Tenant,
    flow::{context::Context, inspect::inspect, own_urls::OwnUrls},
    tenant_error::TenantError,
};

use super::{Finding, Level};
use crate::render::words::{count, first_line};

/// How long a person waits for it. Ten thousand schemas take two seconds, and as many databases a minute: of those, what
/// can be read by then stands for the others.
const LIMIT: Duration = Duration::from_secs(10);

/// How many are read between two looks at the clock: as many as go into one statement.
const PART: usize = 200;

/// How many are named: enough to see what they have in common.
const NAMED: usize = 3;

/// What was read of a server's tenants.
pub(super) struct Reading<'a> {
    /// How many there are, and at how many of them time allowed to look.
    all: usize,
    seen: usize,
    unread: Vec<(&'a Tenant, TenantError)>,
}

impl<'a> Reading<'a> {
    pub(super) async fn of(cx: &Context, tenants: &[&'a Tenant], own_urls: &OwnUrls) -> Self {
        let since = Instant::now();
        let mut reading = Self {
            all: tenants.len(),
            seen: 0,
            unread: Vec::new(),
        };
        for part in tenants.chunks(PART) {
            let left = LIMIT.saturating_sub(since.elapsed());
            let cloned: Vec<Tenant> = part.iter().map(|tenant| (*tenant).clone()).collect();
            let read = match tokio::time::timeout(left, inspect(cx, &cloned, own_urls)).await {
                Ok(Ok(read)) => read,
                // Without control tables nothing takes turns. That they are missing was said.
                Ok(Err(_)) => {
                    reading.all = reading.seen;
                    break;
                }
                Err(_) => break,
            };
            reading.seen += part.len();
            let before = reading.unread.len();
            let errors = part
                .iter()
                .zip(read)
                .filter_map(|(t, read)| Some((*t, read.err()?)));
            reading.unread.extend(errors);
            let down = |(_, error): &(&Tenant, TenantError)| matches!(error, TenantError::Connection(_));
            if reading.unread.len() - before == part.len() && reading.unread[before..].iter().all(down) {
                // A server that does not answer takes its time for each part anew.
                break;
            }
        }
        reading
    }

    /// Those whose database is there, as far as it is known.
    pub(super) fn there(&self, tenants: &[&'a Tenant]) -> Vec<&'a Tenant> {
        let missing = |error: &TenantError| matches!(error, TenantError::Database { sqlstate, .. } if sqlstate == "3D000");
        let gone: HashSet<&str> = self
            .unread
            .iter()
            .filter(|(_, error)| missing(error))
            .map(|(tenant, _)| tenant.id.as_str())
            .collect();
        let there = tenants.iter().filter(|tenant| !gone.contains(tenant.id.as_str()));
        there.copied().collect()
    }

    /// What is wrong with it, if anything is.
    pub(super) fn finding(&self, title: String) -> Option<Finding> {
        let all = count(self.all as u64, "tenant");
        if !self.unread.is_empty() {
            let told: Vec<String> = self
                .unread
                .iter()
                .map(|(tenant, error)| format!("{}: {}", tenant.id, first_line(&error.to_string())))
                .collect();
            let text = format!(
                "{} of {all} cannot be read: {}",
                self.unread.len(),
                some(&told, "; ")
            );
            let hint = "a run would fail for them; `herder tenants --revisions` lists them all";
            return Some(Finding::new(title, Level::Problem, text).hint(hint));
        }
        if self.seen < self.all {
            let text = format!(
                "read only {} of {all} within {LIMIT:?}; the rest were not checked",
                self.seen
            );
            return Some(
                Finding::new(title, Level::Warn, text).hint("`herder tenants --revisions` reads them all"),
            );
        }
        None
    }
}

/// The first of them, and how many more there are.
pub(super) fn some(all: &[String], between: &str) -> String {
    let mut text = all[..all.len().min(NAMED)].join(between);
    if all.len() > NAMED {
        let and = match between {
            "; " => "; and",
            _ => " and",
        };
        text += &format!("{and} {} more", all.len() - NAMED);
    }
    text
}

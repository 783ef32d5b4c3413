//! Which servers answer, as this worker finds: what keeps one that is full, slow or dead from taking the room that the
//! tenants of others need.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rand::seq::SliceRandom;

use crate::{
    domain::{
        backoff::Backoff,
        failure::JobError,
        job::{JobId, Step},
        outcome::Settlement,
    },
    locked::locked,
    store::job::ClaimLimits,
};

/// A server that has not let an attempt in for so long is slow: a connection takes milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// How many refusals in a row make a server full. One or two are no sign of that: a closed session lingers for some
/// milliseconds, and the next one meets the role's limit.
const FULL: u32 = 3;

/// How long a full server is left alone: short enough to be back soon, long enough not to make it fork a process for each
/// of ten thousand tenants that it has to refuse.
const PAUSE: Backoff = Backoff {
    first: Duration::from_millis(250),
    max: Duration::from_secs(5),
};

/// What a worker knows about its servers.
pub(super) struct Reach {
    /// How many jobs it runs at a time.
    room: usize,
    servers: Mutex<HashMap<String, Server>>,
}

#[derive(Default)]
struct Server {
    /// Whether it let the last attempt in. None: nobody has tried.
    answers: Option<bool>,
    /// Attempts that were not let in yet, and since when they have been about it.
    outside: HashMap<JobId, Instant>,
    /// How many attempts in a row it refused because it was full, or not up yet.
    refusals: u32,
    /// Until when it is left alone.
    closed_until: Option<Instant>,
}

impl Reach {
    pub(super) fn new(room: usize) -> Self {
        Self {
            room,
            servers: Mutex::default(),
        }
    }

    /// An attempt sets out.
    pub(super) fn claimed(&self, server: &str, job: JobId, now: Instant) {
        let mut servers = self.servers();
        servers
            .entry(server.to_owned())
            .or_default()
            .outside
            .insert(job, now);
    }

    /// An attempt enters a step: from the guard on, it is in.
    pub(super) fn entered(&self, server: &str, job: JobId, step: Step) {
        if matches!(step, Step::Claimed | Step::Connecting | Step::Settling) {
            return;
        }
        if let Some(server) = self.servers().get_mut(server)
            && server.outside.remove(&job).is_some()
        {
            server.answers = Some(true);
        }
    }

    /// An attempt ended.
    pub(super) fn ended(&self, server: &str, job: JobId, settlement: Option<&Settlement>, now: Instant) {
        let mut servers = self.servers();
        let Some(server) = servers.get_mut(server) else {
            return;
        };
        let was_outside = server.outside.remove(&job).is_some();
        match settlement {
            Some(Settlement::Retry { error, .. } | Settlement::Failed(error)) => {
                server.refused(error, was_outside, now);
            }
            Some(Settlement::Succeeded { .. }) => server.refusals = 0,
            _ => {}
        }
    }

    /// How many more jobs this worker may take of each server. One that answers may have all the room that there is.
    /// Those that do not, and those that nobody has tried yet, get no more than half of it among them.
    pub(super) fn limits(&self, now: Instant) -> ClaimLimits {
        let half = (self.room / 2).max(1);
        let servers = self.servers();
        let troubled = servers.values().filter(|server| server.is_in_trouble(now));
        let mut left = half.saturating_sub(troubled.map(|server| server.outside.len()).sum());
        let mut by_name: Vec<(&String, &Server)> = servers.iter().collect();
        // Each of several dead ones is asked again some time.
        by_name.shuffle(&mut rand::rng());
        let mut limits = ClaimLimits {
            others: i64::try_from(half).unwrap_or(i64::MAX),
            ..ClaimLimits::default()
        };
        for (name, server) in by_name {
            let jobs = if server.closed_until.is_some_and(|until| until > now) {
                0
            } else if server.is_in_trouble(now) {
                std::mem::take(&mut left)
            } else if server.answers.is_none() {
                half.saturating_sub(server.outside.len())
            } else {
                self.room
            };
            limits.servers.push(name.clone());
            limits.jobs.push(i64::try_from(jobs).unwrap_or(i64::MAX));
        }
        limits
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<String, Server>> {
        locked(&self.servers)
    }
}

impl Server {
    fn is_in_trouble(&self, now: Instant) -> bool {
        let slow = |since: &Instant| now.saturating_duration_since(*since) > SLOW;
        self.answers == Some(false) || self.outside.values().any(slow)
    }

    fn refused(&mut self, error: &JobError, was_outside: bool, now: Instant) {
        if error.is_backpressure() {
            self.refusals += 1;
            if self.refusals >= FULL {
                let pauses = self.refusals - FULL + 1;
                self.closed_until = Some(now + PAUSE.delay(pauses, rand::random()));
            }
            return;
        }
        self.refusals = 0;
        if error.reason == "connection_lost" {
            self.answers = match (was_outside, self.answers) {
                (true, _) => Some(false),
                // One that was in may be the first to hear that the server is gone.
                (false, Some(true)) => None,
                (false, known) => known,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant_error::TenantError;

    fn of(limits: &ClaimLimits, server: &str) -> i64 {
        let at = limits.servers.iter().position(|s| s == server);
        at.map_or(limits.others, |at| limits.jobs[at])
    }

    fn snoozed(reason: &str, sqlstate: Option<&str>) -> Settlement {
        Settlement::Retry {
            error: JobError {
                reason: reason.into(),
                sqlstate: sqlstate.map(Into::into),
                ..JobError::default()
            },
            delay: Duration::ZERO,
            counts: false,
        }
    }

    #[test]
    fn a_server_earns_all_the_room_by_its_first_answer() {
        let (reach, now) = (Reach::new(8), Instant::now());
        assert_eq!(of(&reach.limits(now), "a"), 4);
        reach.claimed("a", 1, now);
        assert_eq!(of(&reach.limits(now), "a"), 3);
        reach.entered("a", 1, Step::Connecting);
        assert_eq!(of(&reach.limits(now), "a"), 3);
        reach.entered("a", 1, Step::Guarding);
        assert_eq!(of(&reach.limits(now), "a"), 8);
    }

    #[test]
    fn a_connection_that_is_lost_inside_makes_no_server_better_known() {
        let (reach, now) = (Reach::new(8), Instant::now());
        for job in [1, 2, 3] {
            reach.claimed("a", job, now);
        }
        for job in [1, 2] {
            reach.entered("a", job, Step::Guarding);
        }
        assert_eq!(of(&reach.limits(now), "a"), 8);
        let lost = snoozed("connection_lost", None);
        reach.ended("a", 1, Some(&lost), now);
        assert_eq!(of(&reach.limits(now), "a"), 3);
        let answers = || reach.servers()["a"].answers;
        reach.ended("a", 3, Some(&lost), now);
        assert_eq!(answers(), Some(false));
        reach.ended("a", 2, Some(&lost), now);
        assert_eq!(answers(), Some(false));
    }

    #[test]
    fn servers_that_do_not_answer_share_half_of_the_room() {
        let (reach, now) = (Reach::new(8), Instant::now());
        for (job, server) in [(1, "dead"), (2, "slow")] {
            reach.claimed(server, job, now);
        }
        reach.ended("dead", 1, Some(&snoozed("connection_lost", None)), now);
        let later = now + 2 * SLOW;
        let limits = reach.limits(later);
        // One is still on its way to the slow one.
        assert_eq!(of(&limits, "dead") + of(&limits, "slow"), 3, "{limits:?}");
        for job in 3..=5 {
            reach.claimed("slow", job, later);
        }
        let limits = reach.limits(later);
        assert_eq!(of(&limits, "dead") + of(&limits, "slow"), 0, "{limits:?}");
        // Back again.
        reach.entered("slow", 2, Step::Migrating);
        assert_eq!(of(&reach.limits(later), "slow"), 8);
    }

    #[test]
    fn what_fails_elsewhere_is_no_fault_of_the_server() {
        let (reach, now) = (Reach::new(8), Instant::now());
        reach.claimed("a", 1, now);
        reach.entered("a", 1, Step::Guarding);
        for error in [
            TenantError::ControlDatabase("it is away".into()),
            TenantError::TenantSource("it is away".into()),
        ] {
            reach.claimed("a", 2, now);
            reach.ended("a", 2, Some(&snoozed(error.reason(), None)), now);
            assert_eq!(of(&reach.limits(now), "a"), 8, "{error:?}");
        }
    }

    #[test]
    fn a_full_server_is_left_alone_for_a_while() {
        let (reach, now) = (Reach::new(2), Instant::now());
        let full = snoozed("too_many_connections", Some("53300"));
        for job in 1..=3 {
            assert_ne!(of(&reach.limits(now), "a"), 0);
            reach.claimed("a", job, now);
            reach.ended("a", job, Some(&full), now);
        }
        assert_eq!(of(&reach.limits(now), "a"), 0);
        assert_ne!(of(&reach.limits(now + PAUSE.max), "a"), 0);
    }
}

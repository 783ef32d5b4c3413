//! The store's functions, as the model calls them, and the tables as lines of text.

use std::time::Duration;

use herder::domain::failure::JobError;
use herder::domain::job::{AttemptId, Claim, JobId, Step};
use herder::domain::outcome::{Outcome, Settlement};
use herder::domain::revision::{Direction, Position};
use herder::domain::run::RunId;
use herder::domain::tenant::{Isolation, Place, Tenant};
use herder::store::job::{self, ClaimFilter, Ended, NewJob, Rescued};
use herder::store::retry::{self, Retried};
use herder::store::run::{self, Advanced, NewRun, Others};
use herder::store::server::{self, ServerRow};
use herder::store::slot::{self, Suspect};
use herder::store::worker::{self, WorkerRow};
use sqlx::{AssertSqlSafe, PgPool};

use super::machine::{How, Plan};
use super::{SERVERS, WORKERS};
use crate::fleet::{Cluster, list, tell};

/// How often a job may be started in a row and not be heard of.
pub(super) const MAX_STARTS: i32 = 2;

/// Longer than any test.
const LEASE: Duration = Duration::from_secs(3600);

/// A control database of the model's own.
pub(super) struct Store {
    pool: PgPool,
}

impl Store {
    pub(super) async fn make() -> Self {
        let cluster = Cluster::shared().await;
        let name = format!("model_{:08x}", rand::random::<u32>());
        cluster.control(&name).await;
        let url = herder::secret::Secret::new(cluster.url(&name));
        let pool = herder::store::pool(&url, "model", 6).expect("a pool");
        Self { pool }
    }

    /// As if nothing had ever happened.
    pub(super) async fn forget_all(&self) {
        tell(
            &self.pool,
            "truncate herder.run, herder.job, herder.attempt, herder.slot, herder.server, herder.worker, apalis.jobs cascade",
        )
        .await;
        for server in SERVERS {
            self.budget(server, 5).await;
        }
        for worker in 0..WORKERS {
            self.beat(worker).await;
        }
    }

    fn row(worker: usize) -> WorkerRow {
        WorkerRow {
            id: name(worker),
            name: name(worker),
            concurrency: 4,
            draining: false,
            only_run: None,
            runner: "sql".into(),
            servers: SERVERS.map(Into::into).to_vec(),
        }
    }

    /// A heartbeat, and what it says that the worker holds.
    pub(super) async fn beat(&self, worker: usize) -> Vec<AttemptId> {
        let mut connection = self.pool.acquire().await.expect("a connection");
        let held = worker::beat(&mut connection, &Self::row(worker), LEASE).await;
        let mut held: Vec<_> = held
            .expect("a beat")
            .known
            .into_iter()
            .map(|held| held.attempt)
            .collect();
        held.sort_unstable();
        held
    }

    /// As if the worker had not beaten for its whole lease.
    pub(super) async fn expire(&self, worker: usize) {
        let sql = format!(
            "update herder.worker set lease_until = now() - interval '1 second' where id = '{}'",
            name(worker)
        );
        tell(&self.pool, &sql).await;
    }

    pub(super) async fn budget(&self, server: &str, budget: i32) {
        let row = ServerRow {
            name: server.to_owned(),
            address: format!("{server}:5432"),
            budget,
        };
        let mut connection = self.pool.acquire().await.expect("a connection");
        server::ensure(&mut connection, &row).await.expect("a budget");
    }

    /// A run, as enqueue writes it. Answers with the ids of its jobs, in order.
    pub(super) async fn start(&self, id: RunId, plan: &Plan) -> Vec<JobId> {
        let mut tx = self.pool.begin().await.expect("a transaction");
        let run = NewRun {
            id,
            direction: Direction::Upgrade,
            target: "head".into(),
            runner: "sql".into(),
            checksum: "checksum".into(),
            connections: plan.live,
            tenants: i32::try_from(plan.jobs.len()).expect("a count"),
            waves: plan.waves,
            canary: plan.canary,
            failure_limit: plan.failure_limit,
            trace: None,
        };
        run::lock_enqueue(&mut tx).await.expect("a lock");
        run::insert(&mut tx, &run).await.expect("a run");
        let new = |(nth, job): (usize, &(usize, i32, i16))| NewJob {
            tenant: Tenant {
                id: format!("t{nth}"),
                isolation: Isolation::Schema,
                place: Place {
                    server: SERVERS[job.0].into(),
                    database: "app".into(),
                    // No two runs share a place: enqueue would not have it, and a retry neither.
                    schema: Some(format!("t{nth} of {id}")),
                },
                own_url: false,
                members: Vec::new(),
            },
            wave: job.1,
            from: Position::Base,
            to: Position::At("1".into()),
            current: false,
            plan: None,
            looks: false,
            connections: job.2,
        };
        let jobs: Vec<NewJob> = plan.jobs.iter().enumerate().map(new).collect();
        job::insert_all(&mut tx, id, 0, &jobs).await.expect("jobs");
        job::push_deliveries(&mut tx, id, None).await.expect("deliveries");
        tx.commit().await.expect("a commit");
        let ids = list(
            &self.pool,
            &format!("select id::text from herder.job where run_id = '{id}' order by job.id"),
        )
        .await;
        ids.iter().map(|id| id.parse().expect("an id")).collect()
    }

    pub(super) async fn claim(&self, worker: usize, limit: usize) -> Vec<Claim> {
        let filter = ClaimFilter {
            worker: name(worker),
            run: None,
            runner: "sql".into(),
            servers: SERVERS.map(str::to_owned).to_vec(),
        };
        let mut connection = self.pool.acquire().await.expect("a connection");
        let since = herder::store::server_since(&mut connection)
            .await
            .expect("a time");
        let limits = job::ClaimLimits::unlimited();
        let claims = job::claim(&mut connection, &filter, &limits, limit, since).await;
        claims.expect("a claim")
    }

    /// Writes the ends of several attempts at once, and says which were written.
    pub(super) async fn settle(
        &self,
        worker: usize,
        claims: &[Claim],
        how: How,
        keep: bool,
    ) -> Vec<AttemptId> {
        let end = |claim: &Claim| Ended::new(claim.attempt, &settlement(how), keep);
        let ended: Vec<Ended> = claims.iter().map(end).collect();
        let ended: Vec<&Ended> = ended.iter().collect();
        let mut connection = self.pool.acquire().await.expect("a connection");
        let settled = job::settle(&mut connection, &name(worker), &ended).await;
        let settled = settled.expect("a settlement");
        settled.iter().map(|settled| settled.attempt).collect()
    }

    /// Gives back the slots that a worker kept after an attempt.
    pub(super) async fn release(&self, worker: usize, claim: &Claim) -> u64 {
        let attempts = [claim.attempt];
        let released = slot::release_kept(&self.pool, &name(worker), &attempts).await;
        released.expect("an answer")
    }

    pub(super) async fn give_back(&self, worker: usize, claim: &Claim) -> bool {
        let mut connection = self.pool.acquire().await.expect("a connection");
        let given = worker::give_back(&mut connection, &name(worker), claim.attempt).await;
        given.expect("an answer")
    }

    pub(super) async fn publish(&self, claim: &Claim) {
        let mut connection = self.pool.acquire().await.expect("a connection");
        let step = [(claim.attempt, Step::Migrating)];
        job::publish(&mut connection, &step).await.expect("an answer");
    }

    /// What is sent back is due at once: the model knows no time.
    pub(super) async fn rescue(&self) -> Vec<Rescued> {
        let mut connection = self.pool.acquire().await.expect("a connection");
        let rescued = job::rescue(&mut connection, MAX_STARTS).await.expect("a rescue");
        slot::suspect_lost(&mut connection).await.expect("an answer");
        tell(
            &self.pool,
            "update herder.job set ready_at = now() where state = 'ready' and ready_at > now()",
        )
        .await;
        rescued
    }

    /// Frees all suspect slots, as if their sessions had been seen to be gone.
    pub(super) async fn reclaim(&self) -> u64 {
        let suspects: Vec<Suspect> = slot::suspects(&self.pool).await.expect("suspects");
        slot::free_suspects(&self.pool, &suspects)
            .await
            .expect("an answer")
    }

    pub(super) async fn pause(&self, run: RunId) -> bool {
        run::pause(&self.pool, run).await.expect("a pause")
    }

    pub(super) async fn resume(&self, run: RunId) -> bool {
        run::resume(&self.pool, run).await.expect("a resume")
    }

    pub(super) async fn cancel(&self, run: RunId) -> bool {
        run::cancel(&self.pool, run).await.expect("a cancel")
    }

    pub(super) async fn retry(&self, run: RunId) -> u64 {
        match retry::retry(&self.pool, run, "checksum").await.expect("a retry") {
            Retried::Jobs(sent_back) => sent_back.tenants,
            // No two runs of the model share a place, and their migrations stay as they are.
            refused => panic!("{refused:?}"),
        }
    }

    pub(super) async fn advance(&self, run: RunId) -> Advanced {
        let mut connection = self.pool.acquire().await.expect("a connection");
        run::advance(&mut connection, run, Others::Awaited)
            .await
            .expect("an advance")
    }

    pub(super) async fn mend(&self) -> u64 {
        run::mend(&self.pool).await.expect("a mend")
    }

    pub(super) async fn lose_delivery(&self, job: JobId) {
        tell(
            &self.pool,
            &format!("delete from apalis.jobs where id = lpad(to_hex({job}), 26, '0')"),
        )
        .await;
    }

    /// How many slots a claim could take on each server.
    pub(super) async fn free_slots(&self) -> Vec<(String, i64)> {
        let sql = "select name, (select count(*) from herder.slot where server = name and worker is null and number <= job_slots)
                   from herder.server order by name";
        sqlx::query_as(sql).fetch_all(&self.pool).await.expect("slots")
    }

    /// All that the model has an opinion on, a line each.
    pub(super) async fn lines(&self) -> Vec<String> {
        let sql = "
            select format('job %s %s epoch %s worker %s starts %s failures %s connections %s delivery %s', job.id, job.state, epoch,
                          coalesce(worker, '-'), starts, failures, connections, coalesce(jobs.status = 'Pending', false))
            from herder.job left join apalis.jobs on jobs.id = lpad(to_hex(job.id), 26, '0')
            union all
            select format('slot %s/%s of %s/%s by %s, %s, suspect %s', server, number, job_id, epoch, worker, purpose,
                          suspect_since is not null)
            from herder.slot where worker is not null
            union all
            select format('attempt %s/%s is open', job_id, epoch) from herder.attempt where ended_at is null
            union all
            select format('run %s %s wave %s forgiven %s', id, state, wave, forgiven) from herder.run";
        let lines = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        lines.expect("lines")
    }
}

/// A worker's id.
pub(super) fn name(worker: usize) -> String {
    format!("worker{worker}")
}

fn settlement(how: How) -> Settlement {
    let error = || JobError {
        reason: "model".into(),
        message: "as the model likes".into(),
        ..JobError::default()
    };
    let retry = |counts| Settlement::Retry {
        error: error(),
        delay: Duration::ZERO,
        counts,
    };
    match how {
        How::Succeed => Settlement::Succeeded {
            outcome: Outcome::Migrated,
            from: None,
            to: Some("1".into()),
        },
        How::Fail => Settlement::Failed(error()),
        How::Retry => retry(true),
        How::Snooze => retry(false),
        How::Return => Settlement::Returned,
        How::Live => Settlement::live("elsewhere"),
        How::Skip => Settlement::Skipped(error()),
        How::Cancelled => Settlement::Cancelled,
    }
}

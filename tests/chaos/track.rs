//! A track: one group of tenants, taken up and down, round after round, and looked at after each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::fleet::{Herder, Tool};
use crate::project::{Group, Project};
use crate::report::{INTERLEAVED, LOST, STRANDED, TWICE};
use crate::world::{World, locked, one, rows};

/// How long a run may take once nothing is in its way any more. One that takes longer is stranded.
const RUN_LIMIT: Duration = Duration::from_secs(240);

/// How long it may take to start one, while control database and tenants come and go.
const START_LIMIT: Duration = Duration::from_secs(120);

const LOOK: Duration = Duration::from_millis(150);

/// A group that is taken up and down.
pub(crate) struct Track {
    world: Arc<World>,
    project: Arc<Project>,
    crew: Arc<Crew>,
    group: usize,
    rounds: u32,
    /// What each tenant must show.
    expected: BTreeMap<String, Vec<String>>,
}

impl Track {
    /// A track that has not begun.
    pub(crate) fn new(world: &Arc<World>, project: &Arc<Project>, crew: &Arc<Crew>, group: usize) -> Self {
        Self {
            world: Arc::clone(world),
            project: Arc::clone(project),
            crew: Arc::clone(crew),
            group,
            rounds: 0,
            expected: BTreeMap::new(),
        }
    }

    fn group(&self) -> &Group {
        &self.project.groups[self.group]
    }

    fn name(&self) -> String {
        format!("{} {}", self.project.name, self.group().letter)
    }

    /// Round after round, until the faults are over.
    pub(crate) async fn run(mut self) {
        while !self.world.is_finishing() {
            let up = self.rounds.is_multiple_of(2);
            let Some(run) = self.start_run(up).await else {
                return;
            };
            locked(&self.crew.open).insert(run.clone());
            let second = self.rounds % 3 == 1;
            let settled = (!second || self.try_a_second_run(&run, up).await) && self.settled(&run).await;
            locked(&self.crew.open).remove(&run);
            if !settled {
                return;
            }
            self.look(up).await;
            self.rounds += 1;
        }
    }

    /// The latest run over this group, and its state.
    async fn latest(&self) -> Option<(String, String)> {
        let sql = format!(
            "select id::text, state from herder.run
             where exists (select from herder.job where run_id = run.id and tenant = '{}0000')
             order by created_at desc limit 1",
            self.group().letter
        );
        rows(&self.project.control, &sql).await.pop()
    }

    fn herder(&self, args: &[&str]) -> Herder {
        Herder::start(
            &self.project.dir,
            &[&["--config", &self.group().config], args].concat(),
        )
    }

    /// Starts a run, however many enqueuers it takes.
    async fn start_run(&self, up: bool) -> Option<String> {
        let before = self.latest().await.map(|(id, _)| id);
        let deadline = Instant::now() + START_LIMIT;
        let mut last = String::new();
        while Instant::now() < deadline {
            let doomed = &self.crew.doomed_enqueuers;
            let dies = doomed
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok();
            if dies {
                let enqueuer = self.herder(&[direction(up), &["--wait"]].concat());
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
                enqueuer.kill().await;
                self.world.count("kill -9 of an enqueuer", 1);
            } else {
                let output = self.herder(direction(up)).end().await;
                last = format!("exit code {:?}: {}", output.code, output.stderr);
                if output.code != Some(0) {
                    self.world.count("enqueuers that gave up", 1);
                    self.world.note(&format!("{}: {last}", self.name()));
                }
            }
            match self.latest().await {
                Some((id, _)) if Some(&id) != before.as_ref() => return Some(id),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        self.world.breaks(
            STRANDED,
            1,
            format!("{}: no run can be started; {last}", self.name()),
        );
        None
    }

    /// A second run over the same tenants is refused for as long as the first is open. It is the same one: should the
    /// first be over by then, it finds nothing to do.
    async fn try_a_second_run(&self, run: &str, up: bool) -> bool {
        let second = self.herder(direction(up)).end().await;
        let Some((latest, state)) = self.latest().await else {
            return true;
        };
        if latest == run {
            if state == "running" && second.code == Some(2) {
                self.world.count("second runs refused", 1);
            }
            return true;
        }
        let settled = self.settled(&latest).await;
        let overlap: bool = one(
            &self.project.control,
            &format!(
                "select coalesce((select settled_at from herder.run where id = '{run}')
                        > (select min(started_at) from herder.attempt join herder.job on job.id = job_id
                           where run_id = '{latest}'), false)"
            ),
        )
        .await;
        if overlap {
            let what = format!("{}: {latest} was at work during {run}", self.name());
            self.world.breaks(INTERLEAVED, 1, what);
        }
        settled
    }

    /// Waits until a run is over. False: it never is.
    async fn settled(&self, run: &str) -> bool {
        let began = Instant::now();
        let sql = format!("select state from herder.run where id = '{run}'");
        loop {
            let state: String = one(&self.project.control, &sql).await;
            match state.as_str() {
                "succeeded" => break,
                // The burnt attempts are counted at the end; the tenants have to be brought where they belong.
                "failed" | "halted" => {
                    self.world.count("runs that needed a retry", 1);
                    self.world.note(&format!("{}: run {run} is {state}", self.name()));
                    self.herder(&["retry", run]).end().await;
                }
                _ if began.elapsed().min(self.world.calm()) > RUN_LIMIT => {
                    let open: Vec<(String,)> = rows(
                        &self.project.control,
                        &format!(
                            "select concat_ws(' ', id, tenant, state, epoch, starts, worker, step, ready_at - now(), error)
                             from herder.job where run_id = '{run}' and state in ('waiting', 'ready', 'running')"
                        ),
                    )
                    .await;
                    let count = open.len() as u64;
                    self.world.breaks(
                        STRANDED,
                        count.max(1),
                        format!("{}: run {run} is {state}: {open:?}", self.name()),
                    );
                    return false;
                }
                _ => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        let jobs: i64 = one(
            &self.project.control,
            &format!("select count(*) from herder.job where run_id = '{run}'"),
        )
        .await;
        self.world.count("runs", 1);
        self.world.count("tenant jobs", jobs.unsigned_abs());
        self.world.note(&format!(
            "{}: run {run} took {:.1} s",
            self.name(),
            began.elapsed().as_secs_f64()
        ));
        true
    }

    /// Compares what each tenant shows with what it must show.
    async fn look(&mut self, up: bool) {
        let group = &self.project.groups[self.group];
        for (server, database, schemas) in &group.places {
            let pool = self.world.servers[*server].pool(database);
            for some in schemas.chunks(50) {
                let sql: Vec<String> = some.iter().map(|schema| self.question(schema)).collect();
                let found: Vec<(String, Vec<String>, Option<String>)> =
                    rows(&pool, &sql.join(" union all ")).await;
                for (schema, effects, ledger) in found {
                    let expected = self.expected.entry(schema.clone()).or_default();
                    expected.extend_from_slice(self.project.effects(up));
                    compare(&self.world, self.project.name, &schema, expected, &effects);
                    // What is wrong now is wrong once.
                    *expected = effects;
                    if ledger.as_deref() != self.ledger(up) {
                        let what = format!(
                            "{} {schema}: its ledger says {ledger:?} after going up: {up}",
                            self.project.name
                        );
                        self.world.breaks(LOST, 1, what);
                    }
                }
            }
            if self.project.tool == Tool::Sql {
                let indexes: i64 = one(
                    &pool,
                    "select count(*) from pg_index join pg_class on pg_class.oid = indexrelid
                     where relname like 'item_note%' and indisvalid",
                )
                .await;
                let wanted = if up { schemas.len() } else { 0 };
                if indexes != i64::try_from(wanted).expect("a count") {
                    let what = format!("{indexes} of {wanted} indexes in {database} after going up: {up}");
                    self.world.breaks(LOST, 1, what);
                }
            }
            pool.close().await;
        }
    }

    fn question(&self, schema: &str) -> String {
        let ledger = match self.project.tool {
            Tool::Sql => format!("select count(*)::text from {schema}._sqlx_migrations where success"),
            Tool::Alembic => format!("select max(version_num)::text from {schema}.alembic_version"),
            Tool::Command => format!("select max(v) from {schema}.version"),
        };
        format!("select '{schema}', array(select step from {schema}.effects order by n), ({ledger})")
    }

    /// What a tenant's own ledger says at either end.
    fn ledger(&self, up: bool) -> Option<&'static str> {
        match (self.project.tool, up) {
            (Tool::Sql, true) => Some("4"),
            (Tool::Sql, false) => Some("0"),
            (_, true) => Some("20250203"),
            (_, false) => None,
        }
    }
}

/// What the command line is told.
fn direction(up: bool) -> &'static [&'static str] {
    match up {
        true => &["upgrade"],
        false => &["downgrade", "--to", "base", "--yes"],
    }
}

/// Counts what is there too often, and what is not there.
fn compare(world: &World, project: &str, schema: &str, expected: &[String], found: &[String]) {
    if expected == found {
        return;
    }
    let count = |list: &[String]| {
        list.iter()
            .fold(BTreeMap::<String, i64>::new(), |mut counts, effect| {
                *counts.entry(effect.clone()).or_default() += 1;
                counts
            })
    };
    let (wanted, there) = (count(expected), count(found));
    let of =
        |counts: &BTreeMap<String, i64>, effect: &String| counts.get(effect).copied().unwrap_or_default();
    let twice: i64 = there
        .iter()
        .map(|(effect, n)| (n - of(&wanted, effect)).max(0))
        .sum();
    let lost: i64 = wanted
        .iter()
        .map(|(effect, n)| (n - of(&there, effect)).max(0))
        .sum();
    let tail = |list: &[String]| list[list.len().saturating_sub(8)..].join(", ");
    let what = format!(
        "{project} {schema}: found …{}, wanted …{}",
        tail(found),
        tail(expected)
    );
    if lost > 0 {
        world.breaks(LOST, lost.unsigned_abs(), what.clone());
    }
    if twice > 0 || lost == 0 {
        world.breaks(TWICE, twice.max(1).unsigned_abs(), what);
    }
}

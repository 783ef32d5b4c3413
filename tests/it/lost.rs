//! A worker is lost at each step of an attempt, in each of the ways in which one can be: killed, paused, cut off. What it
//! had begun is taken over, and nothing is done twice, whatever it or the network still has to say afterwards.
//!
//! Nothing in the product stops for these tests. A step is stopped from outside, by the wire between the worker and a
//! server, which stands still at a statement, or by a lock that the migration asks for.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use herder::{domain::failure::JobError, throwaway::Settings};
use rustix::process::Signal;
use sqlx::{Postgres, Transaction};

use crate::fleet::{Cluster, Fleet, Gate, Setup, Tool, Wire, Worker, list, steps, tell};

/// How a tenant is migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By a plan, each revision in a transaction.
    Transaction,
    /// By a plan with a step outside transactions.
    Outside,
    /// By live Alembic.
    Alembic,
    /// By a program.
    Command,
}

/// Where in its attempt the worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The claim is committed, and its answer on the way.
    Claimed,
    /// A connection to the tenant is asked for.
    Connecting,
    /// The tenant's lock is asked for.
    Guarding,
    /// The ledger is read for the first time.
    Inspecting,
    /// The migration's first words are on the way.
    Sending,
    /// In the middle of the migration.
    Migrating,
    /// The migration is done, and the ledger read for the second time.
    Verifying,
    /// The outcome is on the way to the control database.
    Settling,
}

/// What becomes of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// `kill -9`.
    Killed,
    /// SIGSTOP, and SIGCONT after all is over.
    Paused,
    /// No byte gets to it or away from it until all is over; then what it had said arrives.
    CutOff,
}

/// What holds a worker where it is.
enum Hold {
    Control,
    Tenants,
    Gate(Gate),
    Writer(Transaction<'static, Postgres>),
}

impl Hold {
    /// Lets go of what the test itself holds. The wires are another matter.
    async fn release(self) {
        match self {
            Self::Gate(gate) => gate.open().await,
            // The server may have crashed, and the lock with it.
            Self::Writer(writer) => drop(writer.rollback().await),
            Self::Control | Self::Tenants => {}
        }
    }
}

/// A fleet of one tenant whose worker is to be lost.
struct Scene {
    kind: Kind,
    fleet: Fleet,
    control: Wire,
    tenants: Wire,
}

impl Scene {
    /// One tenant and a worker on wires of its own. `cluster`: a server that the test may crash.
    async fn set(kind: Kind, cluster: Option<&Arc<Cluster>>) -> (Self, Worker) {
        let [first, second, third] = steps(3).try_into().expect("three");
        let (tool, second) = match kind {
            Kind::Transaction => (Tool::Sql, second.gated()),
            Kind::Outside => (
                Tool::Sql,
                second.outside("create index concurrently effects_step on effects (step)"),
            ),
            Kind::Alembic => (Tool::Alembic, second.gated()),
            Kind::Command => (Tool::Command, second.gated()),
        };
        let mut setup = Setup::schemas(1).migrations(tool, vec![first, second, third]);
        if let Some(cluster) = cluster {
            setup = setup.on(cluster).control_on(cluster);
        }
        let fleet = setup.start().await;
        let (control, tenants) = fleet.wires().await;
        let args = ["--name", "doomed", "--listen", "127.0.0.1:0"];
        let worker = fleet.worker_over(&control, &tenants, &args);
        let signed_on = "select count(*) from herder.worker";
        fleet
            .wait_until("the worker has signed on", async || {
                fleet.ask::<i64>(signed_on).await == 1
            })
            .await;
        let scene = Self {
            kind,
            fleet,
            control,
            tenants,
        };
        (scene, worker)
    }

    /// Starts a run, and comes back when the worker has got there.
    async fn play(&self, moment: Moment) -> Hold {
        let hold = self.arm(moment).await;
        self.fleet.herder(&["upgrade"]).await.expect(0);
        self.reach(moment, hold).await
    }

    /// The words of a first, and of a second, look at the ledger.
    fn look(&self) -> &'static str {
        match self.kind {
            Kind::Command => "to_regclass('version')",
            _ => "select exists (select from pg_class",
        }
    }

    /// Makes ready for what stops the worker.
    async fn arm(&self, moment: Moment) -> Hold {
        match moment {
            Moment::Claimed => self.control.hold_answer_at("t001"),
            Moment::Connecting => self.tenants.silence(),
            Moment::Guarding => self.tenants.hold_at("pg_try_advisory_lock("),
            Moment::Inspecting => self.tenants.hold_at(self.look()),
            Moment::Sending => self.tenants.hold_at("begin isolation level"),
            Moment::Settling => self.control.hold_at("settled as"),
            Moment::Migrating if self.kind == Kind::Outside => {
                let mut writer = self.fleet.home.begin().await.expect("a transaction");
                sqlx::raw_sql("lock table t001.effects in row exclusive mode")
                    .execute(&mut *writer)
                    .await
                    .expect("a lock");
                return Hold::Writer(writer);
            }
            Moment::Migrating | Moment::Verifying => return Hold::Gate(self.fleet.close_gate().await),
        }
        match moment {
            Moment::Claimed | Moment::Settling => Hold::Control,
            _ => Hold::Tenants,
        }
    }

    /// Waits until the worker is there.
    async fn reach(&self, moment: Moment, hold: Hold) -> Hold {
        let fleet = &self.fleet;
        match &hold {
            Hold::Control if moment == Moment::Claimed => {
                let claimed = async || fleet.count("running").await == 1;
                fleet.wait_until("the job is claimed", claimed).await;
            }
            Hold::Control => {
                let held = async || self.control.held() > 0;
                fleet.wait_until("the outcome is on the wire", held).await;
            }
            Hold::Tenants => {
                let held = async || self.tenants.held() > 0;
                fleet.wait_until("the worker's words are on the wire", held).await;
            }
            Hold::Gate(_) => fleet.wait_at_gate(1).await,
            Hold::Writer(_) => {
                let building =
                    "select phase from pg_stat_progress_create_index where relid = 't001.effects'::regclass";
                let waits =
                    async || list(&fleet.home, building).await == ["waiting for writers before build"];
                fleet.wait_until("the index waits for writers", waits).await;
            }
        }
        match hold {
            Hold::Gate(gate) if moment == Moment::Verifying => {
                self.tenants.hold_at(self.look());
                gate.open().await;
                let held = async || self.tenants.held() > 0;
                fleet.wait_until("the second look is on the wire", held).await;
                Hold::Tenants
            }
            hold => hold,
        }
    }

    fn heal(&self) {
        self.control.heal();
        self.tenants.heal();
    }

    /// The tenant is at the head, by one attempt that counts, and nothing of it was done twice or is left.
    async fn all_is_well(&self, what: &str) {
        let fleet = &self.fleet;
        assert_eq!(
            fleet.over().await,
            "succeeded",
            "{what}\n{}",
            fleet.last_seen().await
        );
        let job = "select format('%s after %s', to_revision, attempts) from herder.job";
        assert_eq!(fleet.ask::<String>(job).await, "20250203 after 1", "{what}");
        let effects: &[&str] = match self.kind {
            Kind::Outside => &["up 20250101", "up 20250203"],
            _ => &["up 20250101", "up 20250102", "up 20250203"],
        };
        assert_eq!(
            fleet.effects(&fleet.tenants[0]).await,
            effects,
            "{what}\n{}",
            fleet.last_seen().await
        );
        if self.kind == Kind::Outside {
            let indexes = "select indisvalid::text from pg_index where indrelid = 't001.effects'::regclass";
            assert_eq!(list(&fleet.home, indexes).await, ["true"], "{what}");
        }
    }

    /// No slot is taken, and no session or lock is left.
    async fn nothing_is_left(&self, what: &str) {
        let fleet = &self.fleet;
        let locks = "select count(*)::text from pg_locks where locktype = 'advisory' and classid <> 7
                     and database = (select oid from pg_database where datname = current_database())";
        let nothing = async || {
            let taken = "select count(*) from herder.slot where job_id is not null";
            fleet.ask::<i64>(taken).await == 0
                && fleet.sessions().await == 0
                && list(&fleet.home, locks).await == ["0"]
        };
        fleet
            .wait_until(&format!("nothing is left: {what}"), nothing)
            .await;
    }
}

async fn lost(kind: Kind, moment: Moment, fate: Fate) {
    let what = format!("{kind:?}, {moment:?}, {fate:?}");
    let (scene, doomed) = Scene::set(kind, None).await;
    let fleet = &scene.fleet;
    let hold = scene.play(moment).await;
    let doomed = lose(doomed, &scene, fate).await;

    let heir = fleet.worker(&["--name", "heir"]);
    let rescued = "select count(*) from herder.attempt where result = 'rescued'";
    fleet
        .wait_until(&format!("the job is rescued: {what}"), async || {
            fleet.ask::<i64>(rescued).await == 1
        })
        .await;
    if kind == Kind::Command && matches!(hold, Hold::Gate(_)) {
        // Its program is not paused, and would connect again for the next step: that cannot be fenced. Once its session
        // was ended it goes no further.
        heir.says("Reclaimed").await;
    }
    // What a paused worker had said arrives now, while its heir is at work; what one that is cut off had said, after.
    if fate != Fate::CutOff {
        scene.heal();
    }
    hold.release().await;
    scene.all_is_well(&what).await;
    if let Some(doomed) = doomed {
        doomed.signal(Signal::CONT);
        scene.heal();
        let renewed = "select count(*) from herder.worker where name = 'doomed' and lease_until > now()";
        fleet
            .wait_until(&format!("the lost worker is back: {what}"), async || {
                fleet.ask::<i64>(renewed).await == 1
            })
            .await;
        // It lets go of what it held, or would not come to its end.
        assert_eq!(doomed.drain().await, Some(0), "{what}");
        scene.all_is_well(&what).await;
    }
    scene.nothing_is_left(&what).await;
    assert_eq!(heir.drain().await, Some(0), "{what}");
}

async fn lose(worker: Worker, scene: &Scene, fate: Fate) -> Option<Worker> {
    match fate {
        Fate::Killed => {
            worker.kill().await;
            return None;
        }
        Fate::Paused => worker.signal(Signal::STOP),
        Fate::CutOff => {
            scene.control.silence();
            scene.tenants.silence();
        }
    }
    Some(worker)
}

/// All at the same time: each has a fleet of its own, and mostly waits.
async fn lost_at(kind: Kind, moments: &[Moment], fate: Fate) {
    join_all(moments.iter().map(|moment| lost(kind, *moment, fate))).await;
}

use Moment::{Claimed, Connecting, Guarding, Inspecting, Migrating, Sending, Settling, Verifying};

/// Before there is anything to migrate, all kinds do the same: they are tried for one.
const TRANSACTION: [Moment; 5] = [Claimed, Connecting, Sending, Migrating, Settling];
const OUTSIDE: [Moment; 3] = [Guarding, Migrating, Settling];
const LIVE: [Moment; 5] = [Guarding, Inspecting, Migrating, Verifying, Settling];

#[tokio::test]
async fn a_worker_killed_at_any_step_of_a_transactional_plan() {
    lost_at(Kind::Transaction, &TRANSACTION, Fate::Killed).await;
}

#[tokio::test]
async fn a_worker_killed_at_any_step_outside_transactions() {
    lost_at(Kind::Outside, &OUTSIDE, Fate::Killed).await;
}

#[tokio::test]
async fn a_worker_killed_at_any_step_of_live_alembic() {
    lost_at(Kind::Alembic, &LIVE, Fate::Killed).await;
}

#[tokio::test]
async fn a_worker_killed_at_any_step_of_a_command() {
    lost_at(Kind::Command, &LIVE, Fate::Killed).await;
}

#[tokio::test]
async fn a_worker_paused_at_any_step_of_a_transactional_plan() {
    lost_at(Kind::Transaction, &TRANSACTION, Fate::Paused).await;
}

#[tokio::test]
async fn a_worker_paused_at_any_step_outside_transactions() {
    lost_at(Kind::Outside, &OUTSIDE, Fate::Paused).await;
}

#[tokio::test]
async fn a_worker_paused_at_any_step_of_live_alembic() {
    lost_at(Kind::Alembic, &LIVE, Fate::Paused).await;
}

#[tokio::test]
async fn a_worker_paused_at_any_step_of_a_command() {
    lost_at(Kind::Command, &LIVE, Fate::Paused).await;
}

#[tokio::test]
async fn a_worker_cut_off_at_any_step_of_a_plan() {
    lost_at(Kind::Transaction, &TRANSACTION, Fate::CutOff).await;
}

#[tokio::test]
async fn a_worker_cut_off_in_the_middle_of_live_work() {
    tokio::join!(
        lost_at(Kind::Outside, &[Migrating], Fate::CutOff),
        lost_at(Kind::Alembic, &[Migrating, Verifying], Fate::CutOff),
        lost_at(Kind::Command, &[Migrating, Verifying], Fate::CutOff),
    );
}

/// Every server crashes, with workers at every step of all kinds of attempts.
#[tokio::test]
async fn servers_that_crash_at_any_step_cost_no_attempt() {
    let settings = Settings::default().parameter("max_connections", 400);
    let cluster = Cluster::own(settings).await;
    let moments = |kind| match kind {
        Kind::Transaction => TRANSACTION.as_slice(),
        Kind::Outside => &OUTSIDE,
        Kind::Alembic | Kind::Command => &LIVE,
    };
    let kinds = [Kind::Transaction, Kind::Outside, Kind::Alembic, Kind::Command];
    let cases = kinds
        .into_iter()
        .flat_map(|kind| moments(kind).iter().map(move |moment| (kind, *moment)));
    let scenes = cases.map(async |(kind, moment)| {
        let (scene, worker) = Scene::set(kind, Some(&cluster)).await;
        let hold = scene.play(moment).await;
        (scene, worker, hold, format!("{kind:?}, {moment:?}, crashed"))
    });
    let scenes = join_all(scenes).await;
    let crashed = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || crashed.server().restart().expect("a restart"))
        .await
        .expect("no panic");
    let ends = scenes.into_iter().map(async |(scene, worker, hold, what)| {
        scene.heal();
        hold.release().await;
        scene.all_is_well(&what).await;
        scene.nothing_is_left(&what).await;
        assert_eq!(worker.drain().await, Some(0), "{what}");
    });
    join_all(ends).await;
}

/// The server commits, and the connection breaks before its word arrives.
async fn a_commit_whose_answer_is_lost(kind: Kind, outcome: &str) {
    let (scene, worker) = Scene::set(kind, None).await;
    let fleet = &scene.fleet;
    let hold = scene.play(Moment::Migrating).await;
    scene.tenants.hold_answer_at("COMMIT");
    hold.release().await;
    let committed = async || !fleet.effects(&fleet.tenants[0]).await.is_empty() && fleet.at_gate().await == 0;
    let second = async || fleet.effects(&fleet.tenants[0]).await.len() >= 2;
    fleet
        .wait_until("it is committed", async || committed().await && second().await)
        .await;
    scene.tenants.cut();
    scene.heal();
    scene.all_is_well(&format!("{kind:?}, lost commit")).await;
    let job = "select format('%s by %s', outcome, epoch) from herder.job";
    assert_eq!(
        fleet.ask::<String>(job).await,
        format!("{outcome} by 2"),
        "{kind:?}"
    );
    scene.nothing_is_left("lost commit").await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found() {
    tokio::join!(
        a_commit_whose_answer_is_lost(Kind::Transaction, "found_applied"),
        a_commit_whose_answer_is_lost(Kind::Alembic, "found_applied"),
        // Each of its files is a transaction: it goes on with the third.
        a_commit_whose_answer_is_lost(Kind::Command, "migrated"),
    );
}

/// Has all jobs done without a plan, as those are that a retry takes up with other migrations.
async fn without_plans(fleet: &Fleet) {
    fleet
        .tell(
            "create function herder.live() returns trigger language plpgsql as
               'begin new.plan_id := null; return new; end';
             create trigger live before insert on herder.job for each row execute function herder.live();",
        )
        .await;
}

/// The link to the tenants' server is cut without a word, and the one to the control database is not. The server finds out
/// by its keepalives, and ends the session; the worker hears nothing of that, and would wait for ever.
async fn a_link_that_is_cut_without_a_word(is_live: bool) {
    let (scene, worker) = Scene::set(Kind::Transaction, None).await;
    let fleet = &scene.fleet;
    if is_live {
        without_plans(fleet).await;
    }
    let hold = scene.play(Moment::Migrating).await;
    scene.tenants.lose_answers();
    let end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity
               where application_name like 'herder/%' and datname = current_database()";
    tell(&fleet.home, end).await;
    hold.release().await;
    scene.all_is_well("cut without a word").await;
    scene.nothing_is_left("cut without a word").await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_link_that_is_cut_without_a_word_is_found_out() {
    tokio::join!(
        a_link_that_is_cut_without_a_word(false),
        a_link_that_is_cut_without_a_word(true),
    );
}

/// The tenants' server is gone, and no new connection gets an answer either. What it may still have of sessions counts until it says
/// that they are gone; but nobody waits for it, whose worker has other servers' tenants to see to.
#[tokio::test]
async fn a_server_that_gives_no_sign_of_life_is_not_waited_for() {
    let (scene, worker) = Scene::set(Kind::Transaction, None).await;
    let fleet = &scene.fleet;
    let hold = scene.play(Moment::Migrating).await;
    scene.tenants.silence();
    let given_up = "select count(*) from herder.attempt where result = 'snoozed' and error->>'message' like '%no sign of life%'";
    fleet
        .wait_until("the attempt is given up", async || {
            fleet.ask::<i64>(given_up).await == 1
        })
        .await;
    let suspect = "select count(*) from herder.slot where suspect_since is not null";
    assert_eq!(fleet.ask::<i64>(suspect).await, 1);
    scene.heal();
    hold.release().await;
    scene.all_is_well("a server that was gone").await;
    scene.nothing_is_left("a server that was gone").await;
    assert_eq!(worker.drain().await, Some(0));
}

/// All that a server's budget has is held by what may be left of sessions there, and it says nothing: no attempt can be made that would
/// find that out, and fail.
#[tokio::test]
async fn what_waits_for_a_silent_server_s_slots_fails_in_the_end() {
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, steps(1))
        .set("servers.main.budget", 3)
        .start()
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let (error, limit) = (JobError::default(), Duration::from_secs(300));
    let failing = async || {
        let failed = herder::store::job::fail_out_of_reach(&fleet.control, "main", &error, limit).await;
        failed
            .expect("an answer")
            .into_iter()
            .map(|(_, jobs)| jobs)
            .sum::<i64>()
    };
    assert_eq!(failing().await, 0);
    let hold = async |number: i32, since: &str| {
        fleet
            .tell(&format!(
                "update herder.slot set worker = 'lost', purpose = 'attempt', taken_at = now(), epoch = 0,
                   job_id = (select min(id) from herder.job), suspect_since = now() - interval '{since}'
                 where number = {number}"
            ))
            .await;
    };
    hold(1, "1 hour").await;
    assert_eq!(failing().await, 0, "one is free");
    hold(2, "1 minute").await;
    assert_eq!(failing().await, 0, "it may be heard of yet");
    hold(2, "1 hour").await;
    assert_eq!(failing().await, 2);
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

/// A worker stands still between its claim and its connection. Its slot is given away, so it must not connect any more.
#[tokio::test]
async fn a_worker_that_slept_since_its_claim_opens_no_connection() {
    let settings = Settings::default().parameter("log_connections", "on");
    let cluster = Cluster::own(settings).await;
    let mut fleet = Setup::schemas(1)
        .migrations(Tool::Sql, steps(2))
        .on(&cluster)
        .start()
        .await;
    // A tenant's own URL is asked of the catalog at the moment of use. The test can lock the catalog.
    fleet.tenants[0].url = Some(cluster.url(&fleet.database("home")));
    fleet.tell("delete from tenants").await;
    fleet.list_tenants().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let catalog = fleet.lock("tenants", "access exclusive").await;
    let zombie = fleet.worker(&["--name", "zombie", "--listen", "127.0.0.1:0"]);
    fleet.wait_at_lock("tenants").await;
    zombie.signal(Signal::STOP);
    catalog.rollback().await.expect("a rollback");
    let heir = fleet.worker(&["--name", "heir"]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    zombie.signal(Signal::CONT);
    fleet
        .wait_until("it knows that its attempt is over", async || {
            zombie.metric("herder_fenced_total").await == 1.0
        })
        .await;
    assert_eq!(zombie.drain().await, Some(0));
    let log = std::fs::read_to_string(cluster.server().dir().join("log")).expect("the server's log");
    let of_attempt = |n: u32| {
        let own = |line: &&str| {
            line.contains("authorized") && line.contains("herder/") && line.ends_with(&format!("/1/{n}"))
        };
        log.lines().filter(own).count()
    };
    assert_eq!((of_attempt(1), of_attempt(2)), (0, 1), "{log}");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(heir.drain().await, Some(0));
}

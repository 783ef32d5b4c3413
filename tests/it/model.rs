//! The state machine of runs, jobs and slots against a small model of it: whatever happens, in whatever order, the
//! tables hold exactly what the model says. The functions are the store's own, on a real database.
//!
//! `just model` takes 100,000 steps, `cargo test` 1,000.

mod machine;
mod store;

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Runtime;

use self::machine::{How, Machine};
use self::store::Store;

/// How many steps one history has.
const STEPS: usize = 100;

/// How many workers there are.
const WORKERS: usize = 4;

/// Where the tenants live.
const SERVERS: [&str; 2] = ["east", "west"];

/// What can happen. Numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
enum Event {
    Start {
        jobs: usize,
        waves: i32,
        canary: bool,
        failure_limit: Option<i32>,
        wide: bool,
    },
    Claim {
        worker: usize,
        limit: usize,
    },
    /// All workers at the same moment.
    Race {
        limit: usize,
    },
    /// By whoever made the attempt, even if the job went on without it long ago.
    Settle {
        attempt: usize,
        how: How,
        keep: bool,
    },
    /// An attempt whose job did not go on without it.
    SettleLive {
        attempt: usize,
        how: How,
        keep: bool,
    },
    /// The latest attempts of a worker in one statement: those that are alive, and some that are not.
    SettleAll {
        worker: usize,
        how: How,
        keep: bool,
    },
    /// What a worker kept after an attempt is closed.
    Release {
        attempt: usize,
    },
    GiveBack {
        attempt: usize,
    },
    Publish {
        attempt: usize,
    },
    Beat {
        worker: usize,
    },
    Expire {
        worker: usize,
    },
    Rescue,
    Reclaim,
    Pause(usize),
    Resume(usize),
    Cancel(usize),
    Retry(usize),
    Advance(usize),
    Mend,
    LoseDelivery(usize),
    Budget {
        server: usize,
        budget: i32,
    },
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        6 => Just(How::Succeed),
        2 => Just(How::Fail),
        2 => Just(How::Retry),
        2 => Just(How::Snooze),
        1 => Just(How::Return),
        1 => Just(How::Live),
        1 => Just(How::Skip),
        1 => Just(How::Cancelled),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let start = (
        1..9_usize,
        1..4,
        any::<bool>(),
        proptest::option::of(0..3),
        any::<bool>(),
    )
        .prop_map(|(jobs, waves, canary, failure_limit, wide)| Event::Start {
            jobs,
            waves,
            canary,
            failure_limit,
            wide,
        });
    let (any_run, any_attempt) = (0..100_usize, 0..1000_usize);
    prop_oneof![
        5 => start,
        20 => (0..WORKERS, 1..5_usize).prop_map(|(worker, limit)| Event::Claim { worker, limit }),
        4 => (1..4_usize).prop_map(|limit| Event::Race { limit }),
        8 => (any_attempt.clone(), how(), any::<bool>())
            .prop_map(|(attempt, how, keep)| Event::Settle { attempt, how, keep }),
        20 => (any_attempt.clone(), how(), any::<bool>())
            .prop_map(|(attempt, how, keep)| Event::SettleLive { attempt, how, keep }),
        4 => (0..WORKERS, how(), any::<bool>()).prop_map(|(worker, how, keep)| Event::SettleAll { worker, how, keep }),
        4 => any_attempt.clone().prop_map(|attempt| Event::Release { attempt }),
        3 => any_attempt.clone().prop_map(|attempt| Event::GiveBack { attempt }),
        2 => any_attempt.prop_map(|attempt| Event::Publish { attempt }),
        10 => (0..WORKERS).prop_map(|worker| Event::Beat { worker }),
        9 => (0..WORKERS).prop_map(|worker| Event::Expire { worker }),
        11 => Just(Event::Rescue),
        6 => Just(Event::Reclaim),
        2 => any_run.clone().prop_map(Event::Pause),
        3 => any_run.clone().prop_map(Event::Resume),
        1 => any_run.clone().prop_map(Event::Cancel),
        3 => any_run.clone().prop_map(Event::Retry),
        10 => any_run.clone().prop_map(Event::Advance),
        4 => Just(Event::Mend),
        4 => any_run.prop_map(Event::LoseDelivery),
        3 => (0..SERVERS.len(), 1..7).prop_map(|(server, budget)| Event::Budget { server, budget }),
    ]
}

/// How many steps were asked for.
fn steps() -> usize {
    let asked = std::env::var("HERDER_MODEL_STEPS")
        .ok()
        .and_then(|n| n.parse().ok());
    asked.unwrap_or(1_000)
}

#[test]
fn whatever_happens_the_tables_hold_what_the_model_says() {
    let runtime = Runtime::new().expect("a runtime");
    let store = runtime.block_on(Store::make());
    let cases = steps().div_ceil(STEPS * 3 / 4);
    let config = Config {
        cases: u32::try_from(cases).expect("a count"),
        // The smallest history that fails is shown; it is made anew in seconds.
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let histories = proptest::collection::vec(event(), STEPS / 2..=STEPS);
    let seen = RefCell::new(BTreeSet::new());
    let tested = TestRunner::new(config).run(&histories, |history| {
        runtime.block_on(async {
            store.forget_all().await;
            let mut machine = Machine::new(&store).await;
            for event in &history {
                machine.step(event).await.map_err(TestCaseError::fail)?;
                machine.compare().await.map_err(TestCaseError::fail)?;
            }
            machine.come_to_an_end().await.map_err(TestCaseError::fail)?;
            seen.borrow_mut().append(&mut machine.seen);
            Ok(())
        })
    });
    if let Err(failure) = tested {
        panic!("{failure}");
    }
    // Histories in which nothing comes about would prove nothing. What is rare takes many of them.
    let common = [
        "claimed",
        "settled",
        "came too late",
        "rescued",
        "reclaimed",
        "opened",
        "over",
    ];
    let rare = [
        "claimed nothing",
        "raced",
        "settled several",
        "released",
        "given back",
        "parked",
        "mended",
        "halted",
        "retried",
    ];
    let rare = rare.iter().filter(|_| steps() >= 10_000);
    for wanted in common.iter().chain(rare) {
        assert!(
            seen.borrow().contains(wanted),
            "nothing was ever {wanted}: {seen:?}"
        );
    }
}

//! Looks at each server all the time: how many sessions each project has there, and whose.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::project::{Project, TENANTS};
use crate::world::{World, locked, now};

/// How long to wait between two looks. What is over the budget for a shorter time may be missed, now and then.
const PAUSE: Duration = Duration::from_millis(15);

/// How many looks that saw too much are kept in full.
const KEPT: usize = 20;

/// All sessions of a project's logins, whatever they call themselves: its tools' connections count as well.
const SESSIONS: &str = "select split_part(usename, '_', 1), usename::text,
        concat_ws(' ', pid, usename, application_name, state, wait_event, clock_timestamp() - backend_start,
                  clock_timestamp() - state_change, left(query, 80))
    from pg_stat_activity where backend_type = 'client backend' and usename ~ '_[0-9]+$'";

/// What was seen on a server.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Seen {
    pub(crate) server: &'static str,
    pub(crate) samples: u64,
    /// The most sessions of a project at one moment.
    pub(crate) most: BTreeMap<String, usize>,
    pub(crate) budgets: BTreeMap<String, usize>,
    /// How many samples were over a budget.
    pub(crate) over: u64,
    /// The first of them, in full.
    pub(crate) over_in_full: Vec<Vec<String>>,
    /// When each login was last seen, in seconds since 1970, and in which session.
    #[serde(skip)]
    pub(crate) last_seen: HashMap<String, (f64, String)>,
    /// The longest time between two samples, in seconds: while the server was down, nobody could look.
    pub(crate) longest_gap: f64,
}

/// One for each server.
pub(crate) struct Samplers {
    stop: Arc<AtomicBool>,
    tasks: Vec<(Arc<Mutex<Seen>>, JoinHandle<()>)>,
}

impl Samplers {
    /// Starts to look, each in a thread of its own: nothing else may slow it down.
    pub(crate) fn start(world: &Arc<World>, projects: &[Arc<Project>]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let tasks = world.servers.iter().enumerate().map(|(index, server)| {
            let budgets = projects
                .iter()
                .filter(|_| TENANTS.contains(&index))
                .map(|p| (p.name.to_owned(), p.budget as usize));
            let seen = Arc::new(Mutex::new(Seen {
                server: server.name,
                budgets: budgets.collect(),
                ..Seen::default()
            }));
            let (url, stop) = (server.cluster.url("postgres"), Arc::clone(&stop));
            let seeing = Arc::clone(&seen);
            let look = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(look(&url, &seeing, &stop));
            };
            (seen, std::thread::spawn(look))
        });
        Self {
            tasks: tasks.collect(),
            stop: Arc::clone(&stop),
        }
    }

    /// Ends them, and says what they saw.
    pub(crate) fn end(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = |(seen, task): (Arc<Mutex<Seen>>, JoinHandle<()>)| {
            task.join().expect("no panic in a sampler");
            locked(&seen).clone()
        };
        self.tasks.into_iter().map(seen).collect()
    }
}

async fn look(url: &str, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = PgConnection::connect(url).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let sessions: Result<Vec<(String, String, String)>, _> =
                sqlx::query_as(SESSIONS).fetch_all(&mut connection).await;
            let Ok(sessions) = sessions else { break };
            locked(seen).take(sessions, last.elapsed().as_secs_f64());
            last = Instant::now();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Seen {
    fn take(&mut self, sessions: Vec<(String, String, String)>, gap: f64) {
        self.samples += 1;
        self.longest_gap = self.longest_gap.max(gap);
        let at = now();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (project, login, session) in &sessions {
            *counts.entry(project).or_default() += 1;
            self.last_seen.insert(login.clone(), (at, session.clone()));
        }
        for (project, count) in counts {
            let most = self.most.entry(project.to_owned()).or_default();
            *most = (*most).max(count);
            if self.budgets.get(project).is_some_and(|budget| count > *budget) {
                self.over += 1;
                if self.over_in_full.len() < KEPT {
                    let of = sessions.iter().filter(|s| s.0 == project);
                    self.over_in_full.push(of.map(|s| s.2.clone()).collect());
                }
            }
        }
    }
}

//! The workers of a project: started anew when they end, fewer and more by turns.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fleet::Worker;
use crate::project::Project;
use crate::proxy::Network;
use crate::world::{World, locked, now};

/// How often the crew is looked at.
const ROUND: Duration = Duration::from_millis(200);

/// How a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Working,
    /// Stopped by SIGSTOP.
    Stopped,
    /// Its network is silent.
    CutOff,
    /// Told to end.
    Draining,
}

/// A worker.
pub(crate) struct Member {
    pub(crate) role: String,
    pub(crate) name: String,
    pub(crate) mood: Mood,
    /// None: it is connected directly.
    pub(crate) network: Option<Network>,
    worker: Worker,
    since: f64,
}

/// How a worker came to its end.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) role: String,
    pub(crate) name: String,
    pub(crate) killed: bool,
    /// Its life, in seconds since 1970.
    pub(crate) since: f64,
    pub(crate) at: f64,
    /// It was all right until then, not stopped or cut off.
    pub(crate) sound: bool,
}

/// The workers of a project.
pub(crate) struct Crew {
    pub(crate) project: Arc<Project>,
    world: Arc<World>,
    pub(crate) members: Mutex<Vec<Member>>,
    pub(crate) exits: Mutex<Vec<Exit>>,
    /// How many there should be.
    target: AtomicUsize,
    started: AtomicUsize,
    over: AtomicBool,
    /// How many waiting enqueuers are to be killed.
    pub(crate) doomed_enqueuers: AtomicUsize,
    /// The runs that are open.
    pub(crate) open: Mutex<BTreeSet<String>>,
}

impl Crew {
    /// Starts the first of them, and keeps their number.
    pub(crate) fn start(world: &Arc<World>, project: &Arc<Project>) -> Arc<Self> {
        let crew = Arc::new(Self {
            project: Arc::clone(project),
            world: Arc::clone(world),
            members: Mutex::default(),
            exits: Mutex::default(),
            target: AtomicUsize::new((project.crew.0 + project.crew.1) / 2),
            started: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            doomed_enqueuers: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&crew).keep());
        crew
    }

    /// From now on there should be so many.
    pub(crate) fn resize(&self, choice: usize) {
        let (least, most) = self.project.crew;
        self.target
            .store(least + choice % (most - least + 1), Ordering::Relaxed);
    }

    async fn keep(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            self.bury();
            let working = locked(&self.members)
                .iter()
                .filter(|m| m.mood != Mood::Draining)
                .count();
            let target = self.target.load(Ordering::Relaxed);
            if working < target {
                self.hire().await;
            } else if working > target {
                self.dismiss(0);
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Takes note of those that have ended by themselves.
    fn bury(&self) {
        let mut members = locked(&self.members);
        let mut at = 0;
        while at < members.len() {
            if members[at].worker.runs() {
                at += 1;
                continue;
            }
            let member = members.remove(at);
            let log = member.worker.log();
            let drained = log.lines().last().is_some_and(|line| line.ends_with("Drained"));
            match member.mood {
                Mood::Draining if drained => {
                    self.world.count("workers drained", 1);
                    let _ = fs::remove_file(self.log_of(&member.name));
                }
                // The signal came before it could listen to it: nothing was begun.
                Mood::Draining if !log.contains("takes jobs") => {
                    self.world.count("workers drained before they began", 1)
                }
                Mood::Draining => self.world.breaks(
                    "a drained worker says so",
                    1,
                    format!(
                        "{} ended otherwise: {}",
                        member.name,
                        log.lines().last().unwrap_or_default()
                    ),
                ),
                // The control database was away when it started: an orchestrator starts it again, and so do we.
                _ if now() - member.since < 20.0 && !log.contains("takes jobs") => {
                    self.world
                        .count("workers that found no control database at their start", 1);
                }
                _ => self.world.breaks(
                    "no worker ends by itself",
                    1,
                    format!("{}: {}", member.name, log.lines().last().unwrap_or_default()),
                ),
            }
            locked(&self.exits).push(Exit {
                role: member.role,
                name: member.name,
                killed: false,
                since: member.since,
                at: now(),
                sound: member.mood == Mood::Draining,
            });
        }
    }

    fn log_of(&self, name: &str) -> std::path::PathBuf {
        self.project.dir.join(format!("{name}.log"))
    }

    async fn hire(&self) {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let (role, name) = (
            self.project.role(number),
            format!("{}-{number:04}", self.project.name),
        );
        let direct: Vec<u16> = self
            .world
            .servers
            .iter()
            .map(|s| s.cluster.server().port())
            .collect();
        // Every other one has a network that faults can get at.
        let network = match number % 2 {
            0 => None,
            _ => Some(Network::to(&direct).await),
        };
        let ports = network.as_ref().map_or(&direct, |network| &network.ports);
        let config = format!("{name}.toml");
        // A worker needs no tenant list: jobs come with their places.
        self.project.configure(&config, 'a', &role, ports);
        let concurrency = self.project.concurrency.to_string();
        let args = [
            "--config",
            &config,
            "--name",
            &name,
            "--concurrency",
            &concurrency,
        ];
        let worker = Worker::start(&self.project.dir, self.log_of(&name), &args, &[]);
        self.world.count("workers started", 1);
        locked(&self.members).push(Member {
            role,
            name,
            mood: Mood::Working,
            network,
            worker,
            since: now(),
        });
    }

    /// SIGTERM for one that works. False: there is none.
    pub(crate) fn dismiss(&self, choice: usize) -> bool {
        self.with(
            choice,
            |m| m.mood == Mood::Working,
            |member| {
                member.mood = Mood::Draining;
                member.worker.signal(Signal::TERM);
            },
        )
        .is_some()
    }

    /// SIGKILL for one, however it is.
    pub(crate) async fn kill(&self, choice: usize) -> Option<String> {
        let member = {
            let mut members = locked(&self.members);
            let at = choice % members.len().max(1);
            if members.get_mut(at).is_none_or(|m| !m.worker.runs()) {
                return None;
            }
            members.remove(at)
        };
        let (sound, at) = (member.mood == Mood::Working, now());
        member.worker.kill().await;
        let name = member.name.clone();
        locked(&self.exits).push(Exit {
            role: member.role,
            name: member.name,
            killed: true,
            since: member.since,
            at,
            sound,
        });
        Some(name)
    }

    /// SIGSTOP for one that works, and SIGCONT after a while.
    pub(crate) async fn stop(&self, choice: usize, pause: Duration) -> bool {
        let name = self.with(
            choice,
            |m| m.mood == Mood::Working,
            |member| {
                member.mood = Mood::Stopped;
                member.worker.signal(Signal::STOP);
            },
        );
        let Some(name) = name else { return false };
        let from = now();
        tokio::time::sleep(pause).await;
        self.world.stood_still(&name, from);
        self.cheer_up(&name, |member| member.worker.signal(Signal::CONT));
        true
    }

    /// Cuts the network of one off for a while. At the end its connections are as they were, or reset.
    pub(crate) async fn cut_off(&self, choice: usize, pause: Duration, reset: bool) -> bool {
        let able = |m: &Member| m.mood == Mood::Working && m.network.is_some();
        let name = self.with(choice, able, |member| {
            member.mood = Mood::CutOff;
            if let Some(network) = &member.network {
                network.silence(true);
            }
        });
        let Some(name) = name else { return false };
        let from = now();
        tokio::time::sleep(pause).await;
        self.world.stood_still(&name, from);
        self.cheer_up(&name, |member| {
            if let Some(network) = &member.network {
                network.silence(false);
                if reset {
                    network.cut();
                }
            }
        });
        true
    }

    /// Resets all connections of one.
    pub(crate) fn cut(&self, choice: usize) -> bool {
        let able = |m: &Member| m.network.is_some();
        self.with(choice, able, |member| {
            member.network.iter().for_each(Network::cut)
        })
        .is_some()
    }

    /// Does something to one of those that are as asked for, and says to which.
    fn with(
        &self,
        choice: usize,
        able: impl Fn(&Member) -> bool,
        act: impl FnOnce(&mut Member),
    ) -> Option<String> {
        let mut members = locked(&self.members);
        let mut fit: Vec<&mut Member> = members.iter_mut().filter(|m| able(m)).collect();
        let at = choice % fit.len().max(1);
        // One that has ended meanwhile is buried soon.
        let member = fit.get_mut(at)?;
        if !member.worker.runs() {
            return None;
        }
        act(member);
        Some(member.name.clone())
    }

    fn cheer_up(&self, name: &str, act: impl FnOnce(&Member)) {
        let mut members = locked(&self.members);
        if let Some(member) = members.iter_mut().find(|m| m.name == name) {
            act(member);
            member.mood = Mood::Working;
        }
    }

    /// Drains them all.
    pub(crate) async fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        // One may be on its way.
        tokio::time::sleep(2 * ROUND).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            while self.dismiss(0) {}
            self.bury();
            let left: Vec<String> = locked(&self.members).iter().map(|m| m.name.clone()).collect();
            if left.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                self.world.breaks(
                    "a drained worker says so",
                    left.len() as u64,
                    format!("{left:?} do not end"),
                );
                return;
            }
            tokio::time::sleep(ROUND).await;
        }
    }
}

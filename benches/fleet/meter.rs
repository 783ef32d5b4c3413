//! What a piece of work takes: time, CPU on both sides, connections, memory. Linux only: all of it is read from /proc.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use serde::Serialize;
use sqlx::{Connection, PgConnection, Row};

use crate::stage::{CONTROL, Stage};

/// How often connections are counted.
const LOOK: Duration = Duration::from_millis(50);

/// Every how many looks the processes are looked at, too: that takes longer.
const PROCESSES: u32 = 4;

/// What /proc counts CPU time in, on every Linux that PostgreSQL runs on.
const TICKS: f64 = 100.0;

/// What a piece of work took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Reading {
    /// When it began, in seconds since 1970.
    pub(crate) began: f64,
    pub(crate) seconds: f64,
    /// User and system time of whoever is not the server.
    pub(crate) client_cpu: f64,
    /// That of the server, all its databases together.
    pub(crate) server_cpu: f64,
    /// The most sessions in the tenants' databases at once.
    pub(crate) tenant_connections: i64,
    /// The most sessions in the control database at once.
    pub(crate) control_connections: i64,
    /// The most memory of one `herder-worker`, in MB.
    pub(crate) worker_mb: f64,
    /// The most memory of all client processes together but for this one, in MB.
    pub(crate) clients_mb: f64,
}

/// Does the work, and says what it took.
pub(crate) async fn measure<T>(
    stage: &Stage,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Reading)> {
    let server = postmaster(stage)?;
    let mut watch = stage.connect("postgres").await?;
    let before = Processes::read().cpu(server);
    let seen = Mutex::new(Reading::default());
    let watching = async {
        let mut most = Reading::default();
        for look in 0_u32.. {
            if look % PROCESSES == 0 {
                Processes::read().memory(server, &mut most);
            }
            // The figures are worth less than the work: a look that fails is left out.
            let _ = connections(&mut watch, &mut most).await;
            *lock(&seen) = most;
            tokio::time::sleep(LOOK).await;
        }
    };
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let start = Instant::now();
    let done = tokio::select! {
        biased;
        done = work => done?,
        () = watching => unreachable!("it watches for ever"),
    };
    let seconds = start.elapsed().as_secs_f64();
    let mut reading = *lock(&seen);
    Processes::read().memory(server, &mut reading);
    let after = Processes::read().cpu(server);
    watch.close().await?;
    (reading.began, reading.seconds) = (began, seconds);
    reading.client_cpu = after.0 - before.0;
    reading.server_cpu = after.1 - before.1;
    Ok((done, reading))
}

fn lock(seen: &Mutex<Reading>) -> MutexGuard<'_, Reading> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connections(watch: &mut PgConnection, most: &mut Reading) -> anyhow::Result<()> {
    let row = sqlx::query(
        "select count(*) filter (where datname = $1), count(*) filter (where datname not in ($1, 'postgres'))
         from pg_stat_activity where backend_type = 'client backend'",
    )
    .bind(CONTROL)
    .fetch_one(watch)
    .await?;
    most.control_connections = most.control_connections.max(row.try_get(0)?);
    most.tenant_connections = most.tenant_connections.max(row.try_get(1)?);
    Ok(())
}

/// The server's first process.
fn postmaster(stage: &Stage) -> anyhow::Result<u32> {
    let file = stage.server.dir().join("data/postmaster.pid");
    let text = fs::read_to_string(file)?;
    Ok(text.lines().next().context("a process id")?.parse()?)
}

struct Process {
    parent: u32,
    name: String,
    /// Its own, and that of its children that are gone, in seconds.
    cpu: f64,
}

struct Processes(HashMap<u32, Process>);

impl Processes {
    fn read() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        Self(pids.filter_map(|pid| Some((pid, process(pid)?))).collect())
    }

    /// All of a family, but for one branch of it.
    fn family(&self, root: u32, without: Option<u32>) -> Vec<u32> {
        let mut found = vec![root];
        let mut at = 0;
        while let Some(&parent) = found.get(at) {
            let children = self.0.iter().filter(|(_, p)| p.parent == parent);
            found.extend(children.map(|(pid, _)| *pid).filter(|pid| Some(*pid) != without));
            at += 1;
        }
        found
    }

    /// CPU seconds of the clients and of the server.
    fn cpu(&self, server: u32) -> (f64, f64) {
        let sum = |family: Vec<u32>| {
            family
                .iter()
                .filter_map(|pid| self.0.get(pid))
                .map(|p| p.cpu)
                .sum()
        };
        let clients = self.family(std::process::id(), Some(server));
        (sum(clients), sum(self.family(server, None)))
    }

    fn memory(&self, server: u32, most: &mut Reading) {
        let mut all = 0.0;
        for pid in self.family(std::process::id(), Some(server)).into_iter().skip(1) {
            let now = megabytes(pid, "VmRSS:");
            all += now;
            if self.0.get(&pid).is_some_and(|p| p.name == "herder-worker") {
                most.worker_mb = most.worker_mb.max(megabytes(pid, "VmHWM:"));
            }
        }
        most.clients_mb = most.clients_mb.max(all);
    }
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        name: name.to_owned(),
        cpu: (ticks(11)? + ticks(12)? + ticks(13)? + ticks(14)?) / TICKS,
    })
}

fn megabytes(pid: u32, what: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or_default() / 1024.0
}

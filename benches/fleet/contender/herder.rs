//! Herder: `herder upgrade --wait`, with workers that are running already.

use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{Contender, Job, Ran};
use crate::{
    args::Task,
    meter::measure,
    project::{Ledger, ini},
    stage::{CONTROL, Stage},
    tenants::{Fleet, HOME},
};

/// How a tenant is migrated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// By Alembic itself, in warm processes.
    Live,
    /// By SQL that Alembic rendered once.
    Plan,
    /// By SQL files.
    Sql,
}

pub(crate) struct Herder {
    pub(crate) way: Way,
    /// How many tenants at a time, all workers together. A live one takes two connections.
    pub(crate) connections: usize,
    pub(crate) workers: usize,
}

#[async_trait]
impl Contender for Herder {
    fn name(&self) -> String {
        let way = match self.way {
            Way::Live => "Herder live",
            Way::Plan => "Herder, Alembic plan",
            Way::Sql => "Herder, SQL files",
        };
        let workers = match self.workers {
            1 => String::new(),
            n => format!(", {n} workers"),
        };
        format!("{way} ×{}{workers}", self.connections)
    }

    fn ledger(&self) -> Ledger {
        match self.way {
            Way::Live | Way::Plan => Ledger::Alembic,
            Way::Sql => Ledger::Sqlx,
        }
    }

    fn most(&self, task: Task) -> usize {
        match (self.way, task) {
            (Way::Live, Task::Twelve) => 100,
            _ => usize::MAX,
        }
    }

    async fn run(&self, stage: &Stage, job: &Job) -> anyhow::Result<Ran> {
        let base = match job.fleet {
            Fleet::Schemas(_) => HOME,
            Fleet::Databases(_) => "{database}",
        };
        stage.list(&job.tenants).await?;
        self.configure(stage, base, &stage.project.directory)?;
        let proof = self.prove(stage).await?;
        let workers = self.start_workers(stage).await?;
        let to = stage.project.head(self.ledger());
        let ran = upgrade(stage, &to).await;
        for worker in workers {
            end(worker).await?;
        }
        Ok(Ran { proof, ..ran? })
    }
}

impl Herder {
    /// Writes `herder.toml` for this way, with the tenants of the catalog.
    pub(crate) fn configure(&self, stage: &Stage, base: &str, migrations: &Path) -> anyhow::Result<()> {
        let control = stage.server.url(CONTROL);
        let runner = match self.way {
            Way::Sql => format!("kind = 'sql'\ndirectory = '{}'", migrations.display()),
            way => format!(
                "kind = 'alembic'\nconfig = '{}'\npython = '{}'\nplan = '{}'",
                ini().display(),
                stage.project.python.display(),
                if way == Way::Plan { "auto" } else { "never" }
            ),
        };
        let config = format!(
            "[control]\nurl = '{control}'\n[tenants]\nsource = 'sql'\nurl = '{control}'\n\
             query = 'select id, database, schema from tenants order by n'\n\
             [servers.main]\nurl = '{}'\nbudget = 60\n[runner]\n{runner}\n",
            stage.server.url(base)
        );
        Ok(fs::write(stage.dir.path().join("herder.toml"), config)?)
    }

    /// Has the plan proven, so that no run pays for that. Says how long it took.
    async fn prove(&self, stage: &Stage) -> anyhow::Result<Option<f64>> {
        if self.way != Way::Plan {
            return Ok(None);
        }
        let start = Instant::now();
        let output = Command::from(stage.program("herder")?)
            .arg("plan")
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Some(start.elapsed().as_secs_f64()))
    }

    /// Starts the workers, and returns when they are ready for work.
    pub(crate) async fn start_workers(&self, stage: &Stage) -> anyhow::Result<Vec<Child>> {
        let mut workers = Vec::with_capacity(self.workers);
        for n in 1..=self.workers {
            let log = File::create(stage.dir.path().join(format!("worker-{n}.log")))?;
            let mut command = stage.program("herder-worker")?;
            command
                .args(["--name", &format!("w{n}"), "--concurrency"])
                .arg(self.connections.div_ceil(self.workers).to_string())
                .stdout(log.try_clone()?)
                .stderr(log);
            workers.push(Command::from(command).kill_on_drop(true).spawn()?);
        }
        let live = "select count(*) from herder.worker where lease_until > now()";
        while stage.ask::<i64>(CONTROL, live).await? < i64::try_from(self.workers)? {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(workers)
    }
}

/// `herder upgrade --wait`, from its start to its end.
pub(crate) async fn upgrade(stage: &Stage, to: &str) -> anyhow::Result<Ran> {
    let log = stage.dir.path().join("upgrade.log");
    let mut command = stage.program("herder")?;
    command
        .args(["upgrade", "--to", to, "--wait", "--yes"])
        .stderr(File::create(&log)?)
        .stdout(std::process::Stdio::null());
    let (status, reading) = measure(stage, async { Ok(Command::from(command).status().await?) }).await?;
    if !status.success() {
        let said = fs::read_to_string(log)?;
        let tail: Vec<&str> = said.lines().rev().take(12).collect();
        anyhow::bail!("herder ended with {status}: {}", tail.join(" | "));
    }
    let of_run = "from herder.attempt join herder.job on job.id = job_id
                  where run_id = (select id from herder.run order by created_at desc limit 1)";
    let epoch = |what: &str| format!("select extract(epoch from {what})::float8 {of_run}");
    let first: Option<f64> = stage.ask(CONTROL, &epoch("min(started_at)")).await?;
    let last: Option<f64> = stage.ask(CONTROL, &epoch("max(ended_at)")).await?;
    Ok(Ran {
        enqueued: first.map(|first| first - reading.began),
        worked: first.zip(last).map(|(first, last)| last - first),
        reading,
        ..Ran::default()
    })
}

/// SIGTERM, and its end.
pub(crate) async fn end(mut worker: Child) -> anyhow::Result<()> {
    let pid = worker.id().context("a worker that ended by itself")?;
    let pid = Pid::from_raw(pid.cast_signed()).context("a process id")?;
    kill_process(pid, Signal::TERM)?;
    worker.wait().await?;
    Ok(())
}

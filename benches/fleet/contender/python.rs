//! One Python process for all tenants: plain Alembic, or the predecessor. It has imported everything before it is timed.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use super::{Contender, Job, Ran};
use crate::{
    args::Task,
    meter::measure,
    project::{Ledger, ini},
    stage::Stage,
    tenants::{Fleet, HOME},
};

/// How long two tenants at a time may take: many times what one after the other does.
const HUNG: Duration = Duration::from_secs(20);

pub(crate) struct Python {
    name: &'static str,
    script: &'static str,
    concurrency: usize,
}

impl Python {
    /// Alembic, called in a loop.
    pub(crate) fn warm() -> Self {
        Self {
            name: "one warm Alembic process",
            script: "warm.py",
            concurrency: 1,
        }
    }

    /// fastapi-tenancy's `TenantMigrationManager.upgrade_all`.
    pub(crate) fn predecessor(concurrency: usize) -> Self {
        Self {
            name: match concurrency {
                1 => "fastapi-tenancy",
                _ => "fastapi-tenancy, 2 at a time",
            },
            script: "predecessor.py",
            concurrency,
        }
    }
}

#[async_trait]
impl Contender for Python {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn ledger(&self) -> Ledger {
        Ledger::Alembic
    }

    fn most(&self, task: Task) -> usize {
        match task {
            Task::Twelve => 15,
            Task::OneStep | Task::Nothing => 40,
        }
    }

    fn once(&self) -> bool {
        self.concurrency > 1
    }

    async fn run(&self, stage: &Stage, job: &Job) -> anyhow::Result<Ran> {
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "benches/fleet/python", self.script]
            .iter()
            .collect();
        let mut child = Command::new(&stage.project.python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What went wrong is in its last line; two at a time tell much besides.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut input = child.stdin.take().context("its input")?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        input
            .write_all(format!("{}\n", self.order(stage, job)).as_bytes())
            .await?;
        let ready = lines.next_line().await?;
        ensure!(ready.as_deref() == Some("ready"), "it ended before it was ready");
        let work = async {
            input.write_all(b"go\n").await?;
            let limit = if self.once() { HUNG } else { Duration::MAX };
            match tokio::time::timeout(limit, lines.next_line()).await {
                Ok(line) => Ok(Some(line?.context("it ended without a word")?)),
                Err(_) => Ok(None),
            }
        };
        let (line, reading) = measure(stage, work).await?;
        let problem = match line {
            None => {
                child.kill().await?;
                Some(format!("hung: ended after {} seconds", HUNG.as_secs()))
            }
            Some(line) => {
                let said: Value = serde_json::from_str(&line)?;
                let failed = said["failed"].as_u64().context("how many failed")?;
                child.wait().await?;
                (failed > 0).then(|| format!("{failed} failed, the first with {}", said["error"]))
            }
        };
        if problem.is_some() && !self.once() {
            bail!("{}", problem.unwrap_or_default());
        }
        Ok(Ran {
            reading,
            problem,
            ..Ran::default()
        })
    }
}

impl Python {
    fn order(&self, stage: &Stage, job: &Job) -> Value {
        let url = |database: &str| {
            let url = stage.server.url(database);
            url.replace("postgresql://", "postgresql+asyncpg://")
        };
        let tenants: Vec<Value> = job
            .tenants
            .iter()
            .map(|t| {
                let own = t.schema.is_none().then(|| url(&t.database));
                json!({"id": t.id, "schema": t.schema, "url": own})
            })
            .collect();
        let (isolation, database) = match job.fleet {
            Fleet::Schemas(_) => ("schema", HOME),
            Fleet::Databases(_) => ("database", "postgres"),
        };
        json!({
            "url": url(database), "template": url("{database_name}"), "isolation": isolation, "ini": ini(),
            "tenants": tenants, "concurrency": self.concurrency, "revision": "head",
        })
    }
}

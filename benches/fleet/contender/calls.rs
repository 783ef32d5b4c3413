//! An `alembic upgrade` per tenant: what a shell script in CI does.

use anyhow::ensure;
use async_trait::async_trait;
use tokio::process::Command;

use super::{Contender, Job, Ran};
use crate::{
    args::Task,
    meter::measure,
    project::{Ledger, ini},
    stage::Stage,
};

pub(crate) struct Calls;

#[async_trait]
impl Contender for Calls {
    fn name(&self) -> String {
        "a call of alembic per tenant".to_owned()
    }

    fn ledger(&self) -> Ledger {
        Ledger::Alembic
    }

    fn most(&self, _: Task) -> usize {
        4
    }

    async fn run(&self, stage: &Stage, job: &Job) -> anyhow::Result<Ran> {
        let work = async {
            for tenant in &job.tenants {
                let mut call = Command::new(&stage.project.python);
                call.args(["-m", "alembic", "-c"]).arg(ini());
                let url = stage.server.url(&tenant.database);
                let url = url.replace("postgresql://", "postgresql+asyncpg://");
                call.args(["-x", &format!("url={url}")]);
                if let Some(schema) = &tenant.schema {
                    call.args(["-x", &format!("schema={schema}")]);
                }
                call.args(["upgrade", "head"]);
                let output = call.output().await?;
                ensure!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Ok(())
        };
        let ((), reading) = measure(stage, work).await?;
        Ok(Ran {
            reading,
            ..Ran::default()
        })
    }
}

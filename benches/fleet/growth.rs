//! How enqueue, run and control database grow with the fleet.

use std::{fs, path::Path, time::Instant};

use serde::Serialize;
use serde_json::json;

use crate::{
    args::Growth,
    contender::{Herder, Ran, Way, end, upgrade},
    report::mark,
    stage::{CONTROL, Stage},
    tenants::{Fleet, HOME, Tenant},
};

/// What is migrated: little, so that what Herder adds stands out. The first makes the ledger, the second is timed.
const MIGRATIONS: [(&str, &str); 2] = [
    (
        "1_notes.sql",
        "create table notes (id bigint primary key, body text not null)",
    ),
    (
        "2_due.sql",
        "alter table notes add column due date; create index notes_due on notes (due)",
    ),
];

/// A fleet of one size.
#[derive(Serialize)]
struct Size {
    tenants: usize,
    first: Ran,
    second: Ran,
    nothing: Ran,
    control_mb: f64,
}

/// Measures every size, then what enqueue alone takes, and prints it.
///
/// # Errors
/// Something broke.
pub(crate) async fn run(args: &Growth) -> anyhow::Result<()> {
    let start = Instant::now();
    let stage = Stage::set(&args.common).await?;
    let migrations = stage.dir.path().join("small");
    fs::create_dir(&migrations)?;
    for (name, sql) in MIGRATIONS {
        fs::write(migrations.join(name), sql)?;
    }
    let herder = Herder {
        way: Way::Sql,
        connections: args.connections,
        workers: 1,
    };
    println!(
        "| tenants | first claim s | run s | ms a tenant | to the smallest | server CPU ms | worker MB | control db MB | nothing to do s |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut sizes: Vec<Size> = Vec::new();
    for &tenants in &args.tenants {
        let size = measure(&stage, &herder, &migrations, tenants).await?;
        let each = |size: &Size| size.second.reading.seconds / size.tenants as f64 * 1000.0;
        let ratio = each(&size) / sizes.first().map_or(each(&size), each);
        println!(
            "| {tenants} | {:.2} | {:.1} | {:.2} | {ratio:.2} | {:.2} | {:.0} | {:.0} | {:.2} |",
            size.second.enqueued.unwrap_or(f64::NAN),
            size.second.reading.seconds,
            each(&size),
            size.second.reading.server_cpu / tenants as f64 * 1000.0,
            size.second.reading.worker_mb,
            size.control_mb,
            size.nothing.reading.seconds,
        );
        sizes.push(size);
    }
    println!();
    if let (Some(first), Some(last)) = (sizes.first(), sizes.last()) {
        let each = |size: &Size| size.second.reading.seconds / size.tenants as f64;
        let ratio = each(last) / each(first);
        println!(
            "Time per tenant at {} to that at {}: {ratio:.2} (≤ 1.2: {})",
            last.tenants,
            first.tenants,
            mark(ratio <= 1.2)
        );
    }
    let mut enqueued = Vec::new();
    if args.enqueue > 0 {
        enqueued = enqueue(&stage, &herder, &migrations, args.enqueue).await?;
    }
    println!("\nAll of it took {:.0?}.", start.elapsed());
    if let Some(path) = &args.common.json {
        let all = json!({ "version": 1, "durable": args.common.durable, "sizes": sizes,
                          "enqueue": { "tenants": args.enqueue, "seconds": enqueued } });
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

async fn measure(stage: &Stage, herder: &Herder, migrations: &Path, tenants: usize) -> anyhow::Result<Size> {
    let fleet = Fleet::Schemas(tenants).tenants();
    make(stage, herder, migrations, &fleet).await?;
    let workers = herder.start_workers(stage).await?;
    let first = upgrade(stage, "1").await?;
    let second = upgrade(stage, "2").await?;
    let nothing = upgrade(stage, "2").await?;
    for worker in workers {
        end(worker).await?;
    }
    let done = "select count(*) from pg_attribute a join pg_class c on c.oid = attrelid
                where relname = 'notes' and attname = 'due'";
    let done: i64 = stage.ask(HOME, done).await?;
    anyhow::ensure!(
        done == i64::try_from(tenants)?,
        "only {done} of {tenants} were migrated"
    );
    let size: i64 = stage
        .ask(CONTROL, "select pg_database_size(current_database())")
        .await?;
    Ok(Size {
        tenants,
        first,
        second,
        nothing,
        control_mb: size as f64 / (1024.0 * 1024.0),
    })
}

/// A fleet of empty schemas, and a control database that has seen nothing.
async fn make(stage: &Stage, herder: &Herder, migrations: &Path, fleet: &[Tenant]) -> anyhow::Result<()> {
    stage.fresh(HOME).await?;
    stage.make_schemas(fleet).await?;
    stage.fresh_control().await?;
    stage.list(fleet).await?;
    herder.configure(stage, HOME, migrations)
}

/// `herder upgrade` without `--wait`, and nobody at work: for tenants without a ledger.
async fn enqueue(
    stage: &Stage,
    herder: &Herder,
    migrations: &Path,
    tenants: usize,
) -> anyhow::Result<Vec<f64>> {
    make(stage, herder, migrations, &Fleet::Schemas(tenants).tenants()).await?;
    let mut seconds = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let output = stage.program("herder")?.args(["upgrade", "--yes"]).output()?;
        seconds.push(start.elapsed().as_secs_f64());
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let output = stage.program("herder")?.args(["cancel", "--yes"]).output()?;
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let jobs: i64 = stage.ask(CONTROL, "select count(*) from herder.job").await?;
    anyhow::ensure!(jobs == 3 * i64::try_from(tenants)?, "only {jobs} jobs");
    let middle = crate::report::median(seconds.iter().copied());
    println!(
        "Enqueue of {tenants}: {middle:.1} s, the median of {seconds:.1?} (≤ 10: {})",
        mark(middle <= 10.0)
    );
    Ok(seconds)
}

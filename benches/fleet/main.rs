//! `just bench`: Herder beside what people use today, over the same tenants, in one run. `just bench-growth`: how it
//! grows with the fleet. The method is in `benches/README.md`.
#![expect(clippy::print_stdout, reason = "the table is what it is run for")]

mod args;
mod compare;
mod contender;
mod feed;
mod growth;
mod meter;
mod project;
mod report;
mod stage;
mod tenants;
#[path = "../../tests/it/venv.rs"]
mod venv;

use args::{Cli, Command};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::read();
    match cli.command {
        Some(Command::Growth(growth)) => growth::run(&growth).await,
        None => compare::run(&cli.compare).await,
    }
}

//! `herder completions`: from the definitions of the command line.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{args::Cli, exit::Exit, output};

pub(crate) fn run(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "herder", &mut script);
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

//! `herder init`: a commented config to start from.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;
use herder::config::TEMPLATE;

use super::Setting;
use crate::{args::Init, exit::Exit, output, problem::Problem};

pub(crate) fn run(setting: &Setting, args: &Init) -> anyhow::Result<Exit> {
    let path = args.path.as_deref().unwrap_or(&setting.path);
    write(path, args.force)?;
    output::say(&format!("Wrote {}", path.display()));
    output::hint("set your tenant source and migrations in it; `herder check` shows what is missing");
    Ok(Exit::Done)
}

fn write(path: &Path, force: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if force {
        return fs::write(path, TEMPLATE).with_context(cannot);
    }
    // Not "look, then write": two of us would both find nothing.
    let mut file = File::create_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Problem::usage(format!("{} already exists", path.display()))
            .hint("--force replaces it; `herder init PATH` writes elsewhere")
            .into(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => {
            Problem::usage(cannot()).caused_by(error).into()
        }
        _ => anyhow::Error::new(error).context(cannot()),
    })?;
    file.write_all(TEMPLATE.as_bytes()).with_context(cannot)
}

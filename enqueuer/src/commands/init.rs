//! `herder init`: a commented config to start from.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;
use herder::config::TEMPLATE;

use super::Setting;
use crate::{args::Init, exit::Exit, hint, output, problem::Problem};

pub(crate) fn run(setting: &Setting, args: &Init) -> anyhow::Result<Exit> {
    let path = args.path.as_deref().unwrap_or(&setting.path);
    write(path, args.force)?;
    output::say(&format!("Wrote {}", path.display()));
    let next = "set your tenant source and migrations in it; `herder check` shows what is missing";
    output::hint(&match &args.path {
        Some(path) if *path != setting.path => hint::complete_with(next, &super::config_args(path)),
        _ => next.to_owned(),
    });
    Ok(Exit::Done)
}

fn write(path: &Path, force: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut options = File::options();
    match force {
        true => options.create(true).truncate(true),
        // Not "look, then write": two of us would both find nothing.
        false => options.create_new(true),
    };
    let mut file = options
        .write(true)
        .open(path)
        .map_err(|error| match error.kind() {
            _ if path.is_dir() => Problem::usage(format!("{} is a folder", path.display()))
                .hint("`herder init PATH` takes the path of the file")
                .into(),
            io::ErrorKind::AlreadyExists => Problem::usage(format!("{} already exists", path.display()))
                .hint("--force replaces it; `herder init PATH` writes elsewhere")
                .into(),
            io::ErrorKind::NotFound => Problem::usage(cannot())
                .caused_by(error)
                .hint("make its folder first: `herder init` makes none")
                .into(),
            io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                Problem::usage(cannot()).caused_by(error).into()
            }
            _ => anyhow::Error::new(error).context(cannot()),
        })?;
    file.write_all(TEMPLATE.as_bytes()).with_context(cannot)
}

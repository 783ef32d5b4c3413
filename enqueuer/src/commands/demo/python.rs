//! A Python with Alembic for the demo, made once.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::{output, problem::Problem};

/// The packages, in the versions that are tested.
const REQUIREMENTS: &str = include_str!("../../../../tests/requirements.txt");

/// The interpreter of a virtual environment that has Alembic and the drivers. In a checkout it is that of the tests,
/// under `target/`; else it is made in `folder`, and goes with that.
pub(super) async fn with_alembic(folder: &Path) -> anyhow::Result<PathBuf> {
    let cache = target().unwrap_or_else(|| folder.to_owned());
    let hash: String = Sha256::digest(REQUIREMENTS)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let venv = cache.join(format!("venv-{hash}"));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));
    // Only a finished environment has the mark. `python` is a link: an upgrade of the system's Python breaks it.
    let ready = || complete.exists() && python.exists();
    if ready() {
        return Ok(python);
    }
    // Whoever else is making it has this lock, and it goes with its process.
    let lock = File::create(cache.join(format!("venv-{hash}.lock"))).context("cannot create a lock file")?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if !ready() {
        output::say(&format!(
            "Creating a Python environment with Alembic in {}",
            venv.display()
        ));
        make(&venv).await?;
        File::create(&complete).context("cannot mark the environment as complete")?;
    }
    drop(lock);
    Ok(python)
}

async fn make(venv: &Path) -> anyhow::Result<()> {
    if venv.exists() {
        fs::remove_dir_all(venv).context("cannot remove an incomplete environment")?;
    }
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(venv);
    run(
        create,
        "cannot create a Python virtual environment",
        "install Python 3.11 or newer with venv (Debian, Ubuntu: sudo apt-get install python3-venv); `herder demo` \
         without --alembic needs none",
    )
    .await?;
    let requirements = venv.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS).context("cannot write requirements.txt")?;
    let mut install = Command::new(venv.join("bin/python"));
    install
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(requirements);
    run(
        install,
        "pip could not install Alembic",
        "check that pip can reach PyPI; PIP_INDEX_URL selects another index",
    )
    .await
}

async fn run(mut command: Command, failed: &str, hint: &str) -> anyhow::Result<()> {
    let problem = || Problem::set_up(failed).hint(hint);
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| problem().caused_by(error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    Err(problem().caused_by(anyhow::anyhow!("{}", last.trim())).into())
}

/// Cargo's target folder, if that is where this program is: `target/debug/herder`.
fn target() -> Option<PathBuf> {
    let target = env::current_exe().ok()?.parent()?.parent()?.to_owned();
    target.join("CACHEDIR.TAG").exists().then_some(target)
}

//! A Python with the packages of `tests/requirements.txt`, made once and shared by all test processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/requirements.txt");

/// The interpreter of a virtual environment that has Alembic and the drivers.
///
/// # Panics
///
/// When it cannot be made; the message says what to install.
pub(crate) fn python() -> PathBuf {
    let requirements = fs::read(REQUIREMENTS).expect("tests/requirements.txt");
    let hash: String = Sha256::digest(&requirements)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target folder");
    let venv = target.join(format!("venv-{hash}"));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));

    // Only a finished environment has the mark. `python` is a link: an upgrade of the system's Python breaks it.
    let ready = || complete.exists() && python.exists();
    if ready() {
        return python;
    }
    // Other test processes wait here. The lock goes with its process, so a killed one blocks nobody.
    let lock = File::create(target.join(format!("venv-{hash}.lock"))).expect("a lock file");
    lock.lock().expect("a lock");
    if !ready() {
        make(&venv);
        File::create(&complete).expect("a mark");
    }
    python
}

fn make(venv: &Path) {
    if venv.exists() {
        fs::remove_dir_all(venv).expect("the removal of a half-made environment");
    }
    run(
        Command::new("python3").args(["-m", "venv"]).arg(venv),
        "install Python 3.11 or newer with venv (Debian, Ubuntu: sudo apt-get install python3-venv)",
    );
    run(
        Command::new(venv.join("bin/python")).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            REQUIREMENTS,
        ]),
        "check that pip reaches PyPI (or set PIP_INDEX_URL)",
    );
}

fn run(command: &mut Command, remedy: &str) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            panic!("{remedy}: {command:?} ended with {}\n{said}", output.status);
        }
        Err(error) => panic!("{remedy}: cannot run {command:?}: {error}"),
    }
}

#[test]
fn the_environment_has_alembic_and_every_driver() {
    let script = "import alembic, sqlalchemy, asyncpg, psycopg2, psycopg; print(alembic.__version__)";
    let output = Command::new(python())
        .args(["-c", script])
        .output()
        .expect("a run of python");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1.20.1");
}

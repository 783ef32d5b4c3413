//! How a warm Python process is started, and what it is told first.

use std::{path::PathBuf, process::Stdio};

use serde_json::Value;
use tokio::process::Command;

/// Reads the first script from standard input and runs it. Drops the current directory from Python's path before that:
/// the alembic command does not have it there either, and a `logging.py` in it would stand in for Python's own.
const STARTER: &str = "import sys; sys.path[:] = filter(None, sys.path); source = sys.stdin.buffer; \
    exec(compile(source.read(int(source.readline())), 'herder_warm/bootstrap.py', 'exec'))";

/// Makes the modules below importable.
const BOOTSTRAP: &str = include_str!("warm/bootstrap.py");

/// The other end of the pipe. It travels over the pipe too: no file, so a read-only file system will do.
const MODULES: [(&str, &str); 26] = [
    ("herder_warm", ""),
    ("herder_warm.child", include_str!("warm/child.py")),
    ("herder_warm.clean", include_str!("warm/clean.py")),
    ("herder_warm.codes", include_str!("warm/codes.py")),
    ("herder_warm.connections", include_str!("warm/connections.py")),
    ("herder_warm.drivers", include_str!("warm/drivers.py")),
    ("herder_warm.errors", include_str!("warm/errors.py")),
    ("herder_warm.halves", include_str!("warm/halves.py")),
    ("herder_warm.harmless", include_str!("warm/harmless.py")),
    ("herder_warm.home", include_str!("warm/home.py")),
    ("herder_warm.leftovers", include_str!("warm/leftovers.py")),
    ("herder_warm.looks", include_str!("warm/looks.py")),
    ("herder_warm.migrate", include_str!("warm/migrate.py")),
    ("herder_warm.offline", include_str!("warm/offline.py")),
    ("herder_warm.own", include_str!("warm/own.py")),
    ("herder_warm.pipes", include_str!("warm/pipes.py")),
    ("herder_warm.plain", include_str!("warm/plain.py")),
    ("herder_warm.project", include_str!("warm/project.py")),
    ("herder_warm.reach", include_str!("warm/reach.py")),
    ("herder_warm.run", include_str!("warm/run.py")),
    ("herder_warm.session", include_str!("warm/session.py")),
    ("herder_warm.serve", include_str!("warm/serve.py")),
    ("herder_warm.tries", include_str!("warm/tries.py")),
    ("herder_warm.urls", include_str!("warm/urls.py")),
    ("herder_warm.within", include_str!("warm/within.py")),
    ("herder_warm.words", include_str!("warm/words.py")),
];

/// What a new process reads first: how to make the modules importable, and the modules.
pub(super) fn script() -> String {
    let modules = Value::Object(
        MODULES
            .map(|(name, source)| (name.to_owned(), source.into()))
            .into_iter()
            .collect(),
    )
    .to_string();
    format!("{}\n{BOOTSTRAP}{}\n{modules}", BOOTSTRAP.len(), modules.len())
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The interpreter: a name that is looked up on `PATH`, or an absolute path.
    pub python: PathBuf,
    /// Variables that the user's code must not inherit, beside Herder's own [`Launch::CONTROL_URL`].
    pub env_remove: Vec<String>,
}

impl Launch {
    /// The variable with the control database's URL: not the business of anybody's migrations.
    pub const CONTROL_URL: &str = "HERDER_CONTROL_URL";

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.python);
        command
            .args(["-c", STARTER])
            .env_remove(Self::CONTROL_URL)
            // They would lead libpq past the server that the URL names.
            .env_remove("PGHOSTADDR")
            .env_remove("PGSERVICE")
            .env("PYTHONUNBUFFERED", "1")
            // The project's folder stays as it is, and an edited file is never mistaken for its old bytecode, which
            // Python tells apart by size and by time in whole seconds.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: one signal then ends it with all that a migration started, and a Ctrl-C in the
            // worker's terminal does not reach it.
            .process_group(0)
            .kill_on_drop(true);
        for name in &self.env_remove {
            command.env_remove(name);
        }
        command
    }

    pub(super) fn python(&self) -> String {
        self.python.display().to_string()
    }
}

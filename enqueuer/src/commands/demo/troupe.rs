//! The demo's workers: real `herder-worker` processes, of which one is killed.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::{output, problem::Problem};

/// How much of a worker's log an error shows.
const LOG_LINES: usize = 5;

/// `sh -c KEEPER keeper LOG PROGRAM…`: says the program's process id, and kills the program when the pipe on standard
/// input closes, however that came to close. No worker outlives the demo, even one that was killed itself.
const KEEPER: &str = r#"
    exec 3<&0 </dev/null
    log=$1; shift
    "$@" >"$log" 2>&1 3<&- & program=$!
    echo "$program"
    exec >/dev/null 2>&1
    { while read -r _; do :; done; kill -9 "$program"; } <&3 & stopper=$!
    exec 3<&-
    wait "$program"
    kill "$stopper"
"#;

/// A worker process. Dropping it ends it.
pub(super) struct Player {
    name: &'static str,
    keeper: Child,
    pid: Option<Pid>,
    log: PathBuf,
}

impl Player {
    /// Starts a worker.
    pub(super) fn start(program: &Path, name: &'static str, config: &Path) -> anyhow::Result<Self> {
        let log = config.with_file_name(format!("{name}.log"));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", KEEPER, "keeper"]).arg(&log).arg(program);
        command.args(["--name", name, "--config"]).arg(config);
        for (variable, _) in env::vars_os().filter(|(variable, _)| is_ours(variable)) {
            command.env_remove(variable);
        }
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the demo, which then ends its workers.
            .process_group(0)
            .spawn()
            .context("cannot start /bin/sh")?;
        let mut line = String::new();
        let stdout = keeper.stdout.take().context("no pipe to a worker")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        Ok(Self {
            name,
            keeper,
            pid,
            log,
        })
    }

    /// Whether this worker calls itself so in the control database.
    pub(super) fn is(&self, id: &str) -> bool {
        id.rsplit_once('-').is_some_and(|(name, _)| name == self.name)
    }

    /// `kill -9`: no goodbye, no clean-up.
    pub(super) fn kill(&self) {
        if let Some(pid) = self.pid {
            // It may be gone by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// The end of its log, if it has ended.
    pub(super) fn gone(&mut self) -> Option<String> {
        self.keeper.try_wait().ok().flatten()?;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Some(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Variables that would make a worker of the demo another one.
fn is_ours(variable: &OsString) -> bool {
    variable.to_string_lossy().starts_with("HERDER_")
}

/// The worker's binary: beside ours. Under cargo it is built first, for it may be missing or old.
pub(super) async fn worker_program() -> anyhow::Result<PathBuf> {
    let ours = env::current_exe().context("cannot tell where this program is")?;
    let program = ours.with_file_name("herder-worker");
    if let Some(cargo) = env::var_os("CARGO") {
        build(cargo, &ours).await?;
    }
    match program.exists() {
        true => Ok(program),
        false => Err(Problem::set_up(format!("{} does not exist", program.display()))
            .hint("install herder-worker beside herder; in a checkout, `cargo demo` builds it")
            .into()),
    }
}

async fn build(cargo: OsString, ours: &Path) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(cargo);
    command.args(["build", "--quiet", "--package", "herder-worker"]);
    if let Some(folder) = env::var_os("CARGO_MANIFEST_DIR") {
        command.current_dir(folder);
    }
    // What cargo tells the program that it runs would make it build half of our dependencies anew.
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&variable);
        }
    }
    if ours.parent().is_some_and(|folder| folder.ends_with("release")) {
        command.arg("--release");
    }
    output::say("Building herder-worker, unless it is up to date");
    let status = command.kill_on_drop(true).stdout(Stdio::null()).status().await?;
    if !status.success() {
        return Err(Problem::set_up("herder-worker could not be built").into());
    }
    Ok(())
}

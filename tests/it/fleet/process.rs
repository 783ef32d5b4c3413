//! The two programs, as an operator starts and ends them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{LIMIT, LOOK};

/// A program beside this test's own.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this test's program");
    let target = own.parent().and_then(Path::parent).expect("the target folder");
    let program = target.join(name);
    assert!(
        program.exists(),
        "{} is missing: run `cargo build` first (`cargo test` in the root of the workspace does)",
        program.display()
    );
    program
}

/// A program in the folder of a fleet, with nothing in its environment that would lead it astray.
fn command(name: &str, dir: &Path, args: &[&str]) -> Command {
    command_for(Command::new(program(name)), dir, args)
}

fn command_for(mut command: Command, dir: &Path, args: &[&str]) -> Command {
    command.args(args).current_dir(dir).kill_on_drop(true);
    for (variable, _) in std::env::vars_os() {
        let variable_name = variable.to_string_lossy();
        if [
            "HERDER_",
            "PG",
            "RUST_LOG",
            "NO_COLOR",
            "GITHUB_",
            "TRACEPARENT",
            "OTEL_",
        ]
        .iter()
        .any(|prefix| variable_name.starts_with(prefix))
        {
            command.env_remove(&variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().expect("a process that was not waited for");
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("a signal");
    if signal == Signal::STOP {
        wait_until_stopped(child);
    }
}

/// The signal is sent, but on a busy machine a thread may go on for a moment: long enough to open a connection.
fn wait_until_stopped(child: &Child) {
    let tasks = format!("/proc/{}/task", child.id().expect("it runs"));
    let is_stopped = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything.
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    while !fs::read_dir(&tasks)
        .expect("its threads")
        .flatten()
        .all(is_stopped)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A `herder` that runs.
pub(crate) struct Herder {
    child: Child,
    args: String,
}

impl Herder {
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_with(dir, args, &[])
    }

    /// With these variables in its environment.
    pub(crate) fn start_with(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = command("herder", dir, args);
        command.envs(env.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            child: command.spawn().expect("a start of herder"),
            args: args.join(" "),
        }
    }

    /// A script for `sh -e`, which finds the programs on its PATH.
    pub(super) fn shell(dir: &Path, script: &str, env: &[(&str, &str)]) -> Self {
        let programs = program("herder").with_file_name("");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = command_for(Command::new("sh"), dir, &["-e", "-c", script]);
        command.env("PATH", format!("{}:{path}", programs.display()));
        command.envs(env.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            child: command.spawn().expect("a shell"),
            args: script.to_owned(),
        }
    }

    /// Waits for its end.
    pub(crate) async fn end(self) -> Output {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output());
        let output = output
            .await
            .unwrap_or_else(|_| panic!("`herder {}` does not end", self.args));
        let output = output.expect("its output");
        Output {
            args: self.args,
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("a kill");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }
}

/// How a `herder` ended.
#[derive(Debug)]
pub(crate) struct Output {
    args: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Makes sure of the exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        let Self {
            args, stdout, stderr, ..
        } = &self;
        assert_eq!(self.code, Some(code), "`herder {args}`\n{stdout}\n{stderr}");
        self
    }

    /// Its standard output, read as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Both streams.
    pub(crate) fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// A `herder-worker` that runs. Dropped, it is killed.
pub(crate) struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    pub(crate) fn start(dir: &Path, log: PathBuf, args: &[&str], env: &[(&str, &str)]) -> Self {
        let file = File::create(&log).expect("a log file");
        let mut command = command("herder-worker", dir, args);
        command.envs(env.iter().copied());
        command.stdout(file.try_clone().expect("a log file")).stderr(file);
        let child = command.spawn().expect("a start of herder-worker");
        Self { child, log }
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log file")
    }

    /// Waits until it has said something.
    pub(crate) async fn says(&self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.log().contains(words) {
            assert!(
                Instant::now() < deadline,
                "it never says {words:?}:\n{}",
                self.log()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("a kill");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        match tokio::time::timeout(LIMIT, self.child.wait()).await {
            Ok(status) => status.expect("its end"),
            Err(_) => panic!("the worker does not end:\n{}", self.log()),
        }
    }

    /// SIGTERM, and the exit code.
    pub(crate) async fn drain(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.end().await.code()
    }

    /// Status and body of a page. It must have been started with `--listen 127.0.0.1:0`.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.says("on http://").await;
        let log = self.log();
        let (_, rest) = log.split_once("on http://").expect("an address");
        let address = rest.split_whitespace().next().expect("an address");
        let get = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(30), get).await;
        let answer = answer.expect("an answer in time").expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// The value of a metric, or the sum over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let of_it = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        page.lines().filter(of_it).filter_map(value).sum()
    }
}

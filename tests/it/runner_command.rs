//! The `command` runner: what a program is told, what it may do to us, and that nothing of it stays behind.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use herder::{
    config::{CommandConfig, RunnerConfig},
    database_url::DatabaseUrl,
    domain::{
        failure::FailureClass,
        revision::{Direction, HistoryError},
    },
    runner::MigrationRunner,
    tenant_error::TenantError,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::tenant::{PATIENCE, Tenant, build, execute, write};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// `sh migrate.sh`, in a folder where it stands; its ledger is what `echo` says.
fn config(folder: &Path, script: &str) -> CommandConfig {
    write(folder, &[("migrate.sh", script)]);
    CommandConfig {
        command: words(&["sh", "migrate.sh", "{tenant}", "{from}>{to}"]),
        downgrade_command: Vec::new(),
        current_command: words(&["echo", "1"]),
        history_command: Vec::new(),
        revisions: words(&["1", "2"]),
        env: BTreeMap::new(),
        stdin: None,
        directory: Some(folder.to_owned()),
        private_variables: Vec::new(),
    }
}

struct Bench {
    folder: tempfile::TempDir,
    runner: Arc<dyn MigrationRunner>,
    tenant: Tenant,
}

impl Bench {
    async fn new(script: &str) -> Self {
        Self::with(script, |_| {}).await
    }

    async fn with(script: &str, change: impl FnOnce(&mut CommandConfig)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path(), script);
        change(&mut config);
        Self {
            runner: build(&RunnerConfig::Command(config)),
            folder,
            tenant: Tenant::new(Some("acme")).await,
        }
    }

    async fn up(&self) -> Result<(), TenantError> {
        self.tenant
            .attempt(&*self.runner, Direction::Upgrade, "head")
            .await
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }

    /// Waits for a process id that the script writes into a file.
    async fn pid(&self, file: &str) -> Pid {
        let wait = async {
            loop {
                let text = self.read(file);
                if let Some(pid) = text
                    .strip_suffix('\n')
                    .and_then(|line| line.parse().ok())
                    .and_then(Pid::from_raw)
                {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("a process id")
    }

    async fn is_gone(&self, pid: Pid) {
        let wait = async {
            while alive(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the process is gone");
    }
}

/// A zombie that nobody has reaped yet does not count: it is its new parent's.
fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let zombie = stat
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'));
    !zombie && test_kill_process(pid).is_ok()
}

#[tokio::test]
async fn a_program_is_told_all_about_its_tenant() {
    let script = "echo \"$@\" > arguments; cat > stdin; env > environment";
    let bench = Bench::with(script, |config| {
        config.env = BTreeMap::from([
            ("MY_DSN".into(), "{url}!".into()),
            ("TARGET".into(), "v{to} {{to}}".into()),
        ]);
        config.stdin = Some("{password}{\"at\": \"{host}\"}".into());
    })
    .await;
    bench.up().await.expect("it went well");
    assert_eq!(bench.read("arguments"), "acme 1>2\n");
    assert_eq!(bench.read("stdin"), "{\"at\": \"127.0.0.1\"}");
    let port = bench.tenant.url.port().to_string();
    let database = bench.tenant.url.database();
    let mut seen: Vec<String> = bench
        .read("environment")
        .lines()
        .filter(|line| {
            ["HERDER_", "PG", "DATABASE_URL", "TARGET", "MY_DSN"]
                .iter()
                .any(|p| line.starts_with(p))
        })
        // Said to these tests, and not by them.
        .filter(|line| !line.starts_with("PG_BIN_DIR="))
        .map(|line| line.replace(&database, "DATABASE").replace(&port, "PORT"))
        .collect();
    seen.sort();
    let run = bench.tenant.claim(Direction::Upgrade, "head").run;
    let name = format!("herder/{run}/1/1");
    let url = format!(
        "postgresql://postgres@127.0.0.1:PORT/DATABASE?application_name={}&options=-c%20lock_timeout%3D1min%20\
         -c%20statement_timeout%3D15min%20-c%20client_connection_check_interval%3D1000ms%20\
         -c%20search_path%3D%22acme%22",
        name.replace('/', "%2F")
    );
    let expected = [
        format!("DATABASE_URL={url}"),
        "HERDER_DATABASE=DATABASE".into(),
        "HERDER_DIRECTION=upgrade".into(),
        "HERDER_FROM=1".into(),
        "HERDER_SCHEMA=acme".into(),
        "HERDER_SERVER=main".into(),
        "HERDER_TENANT=acme".into(),
        "HERDER_TO=2".into(),
        format!("MY_DSN={url}!"),
        format!("PGAPPNAME={name}"),
        "PGDATABASE=DATABASE".into(),
        "PGHOST=127.0.0.1".into(),
        "PGOPTIONS=-c lock_timeout=1min -c statement_timeout=15min -c client_connection_check_interval=1000ms \
         -c search_path=\"acme\""
            .into(),
        "PGPORT=PORT".into(),
        "PGUSER=postgres".into(),
        "TARGET=v2 {to}".into(),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_before_any_tenant_is_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let complaint = |change: &dyn Fn(&mut CommandConfig)| {
        let mut config = config(folder.path(), "");
        change(&mut config);
        let error = herder::runner::build(&RunnerConfig::Command(config), 1)
            .err()
            .expect("it is wrong");
        assert!(error.hint().is_some());
        error.to_string()
    };
    assert_eq!(
        complaint(&|c| c.command.push("--url={url}".into())),
        "[runner] `command` has {url} in its arguments, which anybody on the machine can read"
    );
    assert_eq!(
        complaint(&|c| c.downgrade_command = words(&["x", "{password}"])),
        "[runner] `downgrade_command` has {password} in its arguments, which anybody on the machine can read"
    );
    assert_eq!(
        complaint(&|c| c.command.push("{schemas}".into())),
        "[runner] `command`: unknown placeholder `{schemas}`; did you mean `schema`?"
    );
    assert_eq!(
        complaint(&|c| c.current_command.clear()),
        "[runner] `current_command` is missing"
    );
    assert_eq!(
        complaint(&|c| c.current_command.push("{to}".into())),
        "[runner] `current_command` has {to} in it, which is not known when it runs"
    );
    assert_eq!(
        complaint(&|c| c.history_command = words(&["x", "{schema}"])),
        "[runner] `revisions` and `history_command` are both given"
    );
    assert_eq!(
        complaint(&|c| {
            c.revisions.clear();
            c.history_command = words(&["x", "{schema}"]);
        }),
        "[runner] `history_command` has {schema} in it"
    );
    assert_eq!(
        complaint(&|c| c.stdin = Some("{pasword}".into()))
            .split(';')
            .count(),
        2
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_says_how_to_get_it() {
    let bench = Bench::with("", |config| config.command = words(&["no-such-program-anywhere"])).await;
    let error = bench.up().await.expect_err("it is not there");
    assert!(matches!(error, TenantError::Setup { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "cannot run `no-such-program-anywhere`: there is no such program"
    );
}

#[tokio::test]
async fn a_failure_holds_the_last_words_and_the_servers_code_but_no_secret() {
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; printf 'caf\\351\\n\\n'; \
                  echo \"cannot reach $DATABASE_URL with $TOKEN and $PGPASSWORD\" >&2; \
                  echo 'psql:1: ERROR:  55P03: canceling statement'; exit 3";
    let mut bench = Bench::with(script, |config| {
        config.env = BTreeMap::from([("TOKEN".into(), "hunter3".into())]);
    })
    .await;
    let url = bench
        .tenant
        .url
        .expose()
        .replace("postgres@", "postgres:hunter2@");
    bench.tenant.url = DatabaseUrl::parse(&url).expect("a URL");
    let error = bench.up().await.expect_err("it said so").to_job_error();
    assert_eq!(
        (error.reason.as_str(), error.sqlstate.as_deref()),
        ("lock_timeout", Some("55P03"))
    );
    assert!(
        error.message.starts_with("`sh` ended with exit code 3: …xxx"),
        "{}",
        error.message
    );
    assert!(
        error.message.ends_with(
            "xcaf\u{fffd} | cannot reach *** with *** and *** | psql:1: ERROR:  55P03: canceling statement"
        ),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn what_a_program_got_over_is_not_why_it_failed() {
    for got_over in [
        "FATAL:  sorry, too many clients already; trying again",
        "ERROR:  canceling statement due to lock timeout; trying again",
        "Connection refused; trying again",
    ] {
        let script = format!(
            "echo '{got_over}' >&2; psql -Xq -v ON_ERROR_STOP=1 -c 'alter table nowhere add x int' \"$DATABASE_URL\""
        );
        let error = Bench::new(&script)
            .await
            .up()
            .await
            .expect_err("there is no table");
        assert_eq!(
            (error.class(), error.reason()),
            (FailureClass::Permanent, "tool_failed"),
            "{error}"
        );
        assert!(
            error.to_string().contains("relation \"nowhere\" does not exist"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_signal_is_named() {
    let bench = Bench::new("kill -9 $$").await;
    let error = bench.up().await.expect_err("it was killed");
    assert_eq!(
        error.to_string(),
        "`sh` ended with signal: 9 (SIGKILL) and said nothing"
    );
    assert_eq!(
        (error.class(), error.reason()),
        (FailureClass::Transient, "tool_died")
    );
}

#[tokio::test]
async fn a_program_that_reads_for_ever_or_not_at_all_hangs_nobody() {
    let bench = Bench::new("cat > /dev/null").await;
    bench.up().await.expect("there is nothing to read");
    let bench = Bench::with("exit 0", |config| config.stdin = Some("x".repeat(1_000_000))).await;
    bench.up().await.expect("it need not read");
}

#[tokio::test]
async fn a_deaf_program_is_ended_with_its_children_on_a_cancel() {
    let bench = Bench::new(
        "trap '' TERM; sleep 1000 & echo $! > child; echo $$ > self; while :; do sleep 1000; done",
    )
    .await;
    let cancel = async {
        let pids = (bench.pid("child").await, bench.pid("self").await);
        bench.tenant.cancel.cancel();
        pids
    };
    let (done, (child, own)) = tokio::join!(bench.up(), cancel);
    assert!(matches!(done, Err(TenantError::Cancelled)), "{done:?}");
    assert!(!alive(own), "it was waited for");
    bench.is_gone(child).await;
}

#[tokio::test]
async fn a_polite_program_may_finish_its_sentence() {
    let bench =
        Bench::new("trap 'echo bye > farewell; exit 1' TERM; echo $$ > self; while :; do sleep 0.01; done")
            .await;
    let cancel = async {
        bench.pid("self").await;
        bench.tenant.cancel.cancel();
    };
    let (done, ()) = tokio::join!(bench.up(), cancel);
    assert!(matches!(done, Err(TenantError::Cancelled)), "{done:?}");
    assert_eq!(bench.read("farewell"), "bye\n");
}

#[tokio::test]
async fn a_dropped_attempt_leaves_no_process() {
    let bench = Bench::new("trap '' TERM; sleep 1000 & echo $! > child; echo $$ > self; wait").await;
    let (child, own) = tokio::select! {
        done = bench.up() => panic!("it came back: {done:?}"),
        pids = async { (bench.pid("child").await, bench.pid("self").await) } => pids,
    };
    bench.is_gone(child).await;
    bench.is_gone(own).await;
}

#[tokio::test]
async fn a_command_counts_as_one_statement_and_is_ended_at_its_limit() {
    let mut bench = Bench::new("echo $$ > self; sleep 1000").await;
    bench.tenant.limits.statement_timeout = Duration::from_millis(300);
    let error = bench.up().await.expect_err("it takes too long");
    assert_eq!(error.to_string(), "it took longer than 300ms");
    assert!(!alive(bench.pid("self").await));
}

#[tokio::test]
async fn a_daemon_in_the_group_is_ended_and_one_that_fled_hangs_nobody() {
    let bench = Bench::new("sleep 1000 & echo $! > child; setsid sleep 1000 & echo $! > fled").await;
    let start = Instant::now();
    bench.up().await.expect("the program itself went well");
    assert!(start.elapsed() < PATIENCE);
    bench.is_gone(bench.pid("child").await).await;
    let _ = kill_process(bench.pid("fled").await, Signal::KILL);
}

#[tokio::test]
async fn a_lost_lock_ends_the_program() {
    let bench = Bench::new("echo $$ > self; exec sleep 1000").await;
    let lose = async {
        let own = bench.pid("self").await;
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and application_name like 'herder/%'";
        execute(&mut bench.tenant.admin().await, end).await;
        own
    };
    let (done, own) = tokio::join!(bench.up(), lose);
    let error = done.expect_err("the lock is lost");
    assert_eq!(
        error.class(),
        herder::domain::failure::FailureClass::Infrastructure,
        "{error:?}"
    );
    assert!(!alive(own));
}

#[tokio::test]
async fn the_session_with_the_lock_says_that_it_lives() {
    let bench = Bench::new("echo $$ > self; exec sleep 1000").await;
    let said = "select count(*) = 1 from pg_stat_activity where datname = current_database() \
                and application_name like 'herder/%' and query = 'select 1'";
    tokio::select! {
        done = bench.up() => panic!("it came back: {done:?}"),
        () = bench.tenant.becomes("the session said something", said) => {}
    }
}

#[tokio::test]
async fn a_history_may_be_printed_or_not_be_known_at_all() {
    let printed = Bench::with("echo \"$HERDER_TO\" > to", |config| {
        config.revisions.clear();
        config.history_command = words(&["printf", " a1 \\n\\nb2\\r\\n c3"]);
        config.current_command = words(&["printf", "connected\\n a1 \\n\\n"]);
    })
    .await;
    assert_eq!(printed.tenant.ledger(&*printed.runner).await, ["a1"]);
    printed
        .tenant
        .attempt(&*printed.runner, Direction::Upgrade, "+1")
        .await
        .expect("a step");
    assert_eq!(printed.read("to"), "b2\n");

    let unknown = Bench::with("echo \"$HERDER_FROM $HERDER_TO\" > to", |config| {
        config.revisions.clear();
        config.current_command = words(&["echo", "base"]);
    })
    .await;
    assert_eq!(unknown.tenant.ledger(&*unknown.runner).await, [""; 0]);
    let error = unknown.up().await.expect_err("there is no head");
    assert!(
        matches!(&error, TenantError::History(HistoryError::NotListed(target)) if target == "head"),
        "{error:?}"
    );
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("`revisions`") && hint.contains("`history_command`"),
        "{hint}"
    );
    unknown
        .tenant
        .attempt(&*unknown.runner, Direction::Upgrade, "release-7")
        .await
        .expect("a target in full");
    assert_eq!(unknown.read("to"), "base release-7\n");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
    let bench = Bench::with("", |config| {
        config.current_command = words(&["sh", "-c", "echo 1; echo 'no ledger here' >&2; exit 2"]);
    })
    .await;
    let error = bench.up().await.expect_err("it cannot be read");
    assert_eq!(
        error.to_string(),
        "`sh` ended with exit code 2: 1 | no ledger here"
    );
}

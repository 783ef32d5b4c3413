//! `herder check`: is all that a run needs fit for it?

mod reading;
mod role;
mod server;

use std::collections::BTreeMap;

use herder::{
    config::Config,
    domain::{
        revision::{Direction, History, Ledger},
        tenant::{Isolation, Tenant},
    },
    flow::{context::Context, own_urls::OwnUrls, resolve::resolve},
    store::{self, setup::setup_state, view},
    tenant_error::TenantError,
};
use serde::Serialize;

use super::Setting;
use crate::{
    args::Output,
    control,
    exit::Exit,
    hint, output, problem,
    render::{self, words::count},
};

/// All that was looked at.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    pub(crate) checks: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: String,
    pub(crate) result: Level,
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// What the DBA may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sql: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// Fit.
    Ok,
    /// A run will work, but somebody should know.
    Warn,
    /// A run will not work, or not for all.
    Problem,
}

impl Finding {
    fn new(name: impl Into<String>, result: Level, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            result,
            text: text.into(),
            hint: None,
            sql: None,
        }
    }

    fn problem(name: impl Into<String>, error: impl Into<anyhow::Error>) -> Self {
        Self::of(name, &error.into())
    }

    fn of(name: impl Into<String>, error: &anyhow::Error) -> Self {
        Self {
            hint: problem::hint_of(error),
            ..Self::new(name, Level::Problem, problem::one_line(error))
        }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

pub(crate) async fn run(setting: &Setting, args: &Output) -> anyhow::Result<Exit> {
    let config = setting.config()?;
    let mut checks = vec![Finding::new(
        "config",
        Level::Ok,
        config.path.display().to_string(),
    )];
    let control = control_database(&config).await;
    checks.push(match &control {
        Ok(finding) => finding.clone(),
        Err(error) => Finding::of(CONTROL, error),
    });
    match Context::new(config.clone(), "herder", 1) {
        Ok(cx) => {
            checks.push(migrations(&cx).await);
            // Without the control database nobody knows whose turn it is to connect to a server.
            checks.extend(tenants_and_servers(&cx, &config, control.is_ok()).await);
        }
        Err(error) => checks.push(Finding::problem("config", error)),
    }
    for hint in checks.iter_mut().filter_map(|check| check.hint.as_mut()) {
        *hint = hint::complete(hint);
    }
    let ok = checks.iter().all(|check| check.result != Level::Problem);
    let report = Report { ok, checks };
    if args.is_json() {
        output::answer(output::json(&report))?;
    } else {
        output::answer(output::data(&render::check::render(&report)))?;
    }
    control.map(|_| if ok { Exit::Done } else { Exit::Found })
}

/// What it is called.
const CONTROL: &str = "control database";

async fn control_database(config: &Config) -> anyhow::Result<Finding> {
    let pool = &control::connect_unchecked(&config.control).await?;
    let problem = |text: String| Finding::new(CONTROL, Level::Problem, text);
    if let Some((text, remedy)) = setup_state(pool).await?.problem() {
        return Ok(problem(format!("it {text}")).hint(remedy));
    }
    if store::is_read_only(pool).await? {
        let text = "it is read-only: a standby, or a server whose transactions are read-only by default";
        return Ok(problem(text.to_owned()).hint("[control] `url` must point to the primary"));
    }
    let workers = match view::workers(pool).await?.alive() {
        0 => "no worker is running (none is needed with --local)".to_owned(),
        n => format!("{} running", count(n, "worker")),
    };
    Ok(Finding::new(
        CONTROL,
        Level::Ok,
        format!("it is set up; {workers}"),
    ))
}

async fn migrations(cx: &Context) -> Finding {
    let name = "migrations";
    let history = match cx.runner.history().await {
        Ok(history) => history,
        Err(error) => return Finding::problem(name, error),
    };
    let revisions = count(history.revisions().len() as u64, "revision");
    match history.heads().as_slice() {
        _ if history.is_opaque() => Finding::new(
            name,
            Level::Warn,
            "the command does not list its revisions: a target must be a full revision id",
        )
        .hint("list them in [runner] `revisions`, or let `history_command` print them"),
        [] => Finding::new(name, Level::Warn, "no migrations found").hint("check the path in [runner]"),
        [head] => match unreadable(cx, &history, head).await {
            Some((level, error)) => Finding {
                result: level,
                ..Finding::problem(name, error)
            },
            None => Finding::new(
                name,
                Level::Ok,
                format!("{revisions}, head is {}", named(&history, head)),
            ),
        },
        heads => Finding::new(
            name,
            Level::Problem,
            format!("{revisions} with {} heads: {}", heads.len(), heads.join(", ")),
        )
        .hint("merge them, or name a revision with --to"),
    }
}

/// What a person has written that no plan can be made of: a problem in the newest revision, and otherwise one for new tenants only.
async fn unreadable(cx: &Context, history: &History, head: &str) -> Option<(Level, TenantError)> {
    if cx.runner.is_rendered() {
        return None;
    }
    let others = history.revisions().iter().filter(|revision| revision.id != head);
    let before_it = Ledger {
        revisions: others.map(|revision| revision.id.clone()).collect(),
        half: None,
    };
    for (before, level) in [(before_it, Level::Problem), (Ledger::default(), Level::Warn)] {
        let plan = cx
            .runner
            .plan(Direction::Upgrade, &before, Some(head), Isolation::Schema);
        if let Err(error) = plan.await {
            return Some((level, error));
        }
    }
    None
}

fn named(history: &History, id: &str) -> String {
    match history.get(id).map(|r| r.label.as_str()).unwrap_or_default() {
        "" => id.to_owned(),
        label => format!("{id} ({label})"),
    }
}

/// `may_connect`: to the servers, too.
async fn tenants_and_servers(cx: &Context, config: &Config, may_connect: bool) -> Vec<Finding> {
    let name = "tenants";
    let listed = match cx.source.list().await {
        Ok(listed) => listed,
        Err(error) => return vec![Finding::problem(name, error)],
    };
    let own_urls = OwnUrls::of(&listed);
    let resolved = match resolve(listed, &cx.servers) {
        Ok(resolved) => resolved,
        Err(error) => return vec![Finding::problem(name, error)],
    };
    let mut found = vec![Finding::new(name, Level::Ok, sums(&resolved.tenants))];
    found.extend(
        resolved
            .warnings
            .into_iter()
            .map(|warning| Finding::new(name, Level::Warn, warning)),
    );
    if !may_connect {
        return found;
    }
    let mut servers: BTreeMap<&str, Vec<&Tenant>> = BTreeMap::new();
    for tenant in &resolved.tenants {
        servers.entry(&tenant.place.server).or_default().push(tenant);
    }
    let set_by_hand = set_by_hand(cx).await;
    for (name, tenants) in &servers {
        let server = server::Server {
            cx,
            name,
            tenants,
            own_urls: &own_urls,
            set_by_hand: set_by_hand.get(*name).copied(),
        };
        found.extend(server.check().await);
    }
    for unused in config
        .servers
        .keys()
        .filter(|name| !servers.contains_key(name.as_str()))
    {
        found.push(Finding::new(
            format!("server {unused}"),
            Level::Warn,
            "no tenant is on this server",
        ));
    }
    found
}

/// The budgets that a person has set. A control database without tables has none.
async fn set_by_hand(cx: &Context) -> BTreeMap<String, i32> {
    let budgets = store::server::budgets(&cx.pool, None).await.unwrap_or_default();
    let set = budgets.into_iter().map(|known| (known.server, known.overridden));
    set.filter_map(|(server, set)| Some((server, set?))).collect()
}

/// `412 tenants: 400 schemas, 12 databases`.
fn sums(tenants: &[Tenant]) -> String {
    let mut by_isolation: BTreeMap<_, usize> = BTreeMap::new();
    let mut all = 0;
    for tenant in tenants {
        *by_isolation.entry(tenant.isolation).or_default() += 1;
        all += 1 + tenant.members.len();
    }
    let jobs: Vec<String> = by_isolation
        .into_iter()
        .map(|(isolation, n)| match isolation.as_str() {
            "shared" => count(n as u64, "shared schema"),
            other => count(n as u64, other),
        })
        .collect();
    format!("{}: {}", count(all as u64, "tenant"), jobs.join(", "))
}

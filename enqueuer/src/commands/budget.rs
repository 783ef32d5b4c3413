//! `herder budget`: the connections of each server, and how a person changes how many of them are Herder's.

use herder::{
    flow::{budget, context::Context},
    session::arithmetic::Arithmetic,
    store::server::{self, BudgetView, Changed, Least},
};
use serde::Serialize;

use super::Setting;
use crate::{
    args::{self, SetBudget},
    exit::Exit,
    output,
    problem::Problem,
    render::{self, words::count},
};

/// All servers.
#[derive(Serialize)]
struct Report {
    servers: Vec<Server>,
}

/// A server: what the control database knows, and what the server itself says.
#[derive(Serialize)]
pub(crate) struct Server {
    #[serde(flatten)]
    pub(crate) known: BudgetView,
    /// How many connections Herder could have at most, now. None: it could not be asked.
    pub(crate) headroom: Option<i32>,
    /// Sessions of others.
    pub(crate) not_ours: Option<i32>,
    pub(crate) max_connections: Option<i32>,
    pub(crate) reserved: Option<i32>,
    /// Why it could not be asked.
    pub(crate) unknown: Option<String>,
}

pub(crate) async fn run(setting: &Setting, args: &args::Budget) -> anyhow::Result<Exit> {
    let cx = setting.context(None).await?;
    let known = find(&cx, args.server.as_deref()).await?;
    let mut changed = None;
    if let Some(set) = args.set {
        let name = only(&known)?.server.clone();
        changed = change(&cx, &name, set).await?.map(|changed| (name, changed));
    }
    let known = match changed {
        None => known,
        Some(_) => find(&cx, args.server.as_deref()).await?,
    };
    let servers = look(&cx, known).await;
    if let Some((name, changed)) = &changed
        && let Some(server) = servers.iter().find(|server| server.known.server == *name)
    {
        say(*changed, server);
    }
    if args.output.is_json() {
        output::json(&Report { servers })?;
    } else if servers.is_empty() {
        output::say("No run has been started yet, so no server has a budget");
        output::hint(BEFORE_ANY);
    } else {
        output::data(&render::budget::render(&servers))?;
        for server in &servers {
            render::budget::hint(server)
                .iter()
                .for_each(|text| output::hint(text));
            render::budget::warnings(server).for_each(|text| output::warning(&text));
        }
    }
    Ok(Exit::Done)
}

/// What to do where no server is known.
const BEFORE_ANY: &str = "`herder check` shows what the budgets will be";

/// The servers that runs were made for, or the one of that name.
async fn find(cx: &Context, name: Option<&str>) -> anyhow::Result<Vec<BudgetView>> {
    let known = server::budgets(&cx.pool, name).await?;
    match name {
        Some(name) if known.is_empty() && cx.servers.contains(name) => Err(Problem::usage(format!(
            "no run has used server `{name}` yet, so its budget is the configured one"
        ))
        .hint("`herder check` shows it; [servers] `budget` changes it")
        .into()),
        Some(name) if known.is_empty() => {
            let there = server::budgets(&cx.pool, None).await?;
            let names: Vec<&str> = there.iter().map(|known| known.server.as_str()).collect();
            Err(Problem::usage(format!("there is no server `{name}`"))
                .hint(match names.as_slice() {
                    [] => "`herder upgrade` starts the first run".to_owned(),
                    names => format!("known servers: {}", names.join(", ")),
                })
                .into())
        }
        _ => Ok(known),
    }
}

fn only(known: &[BudgetView]) -> anyhow::Result<&BudgetView> {
    match known {
        [one] => Ok(one),
        [] => Err(
            Problem::usage("no server has a budget to set: no run has been started yet")
                .hint(BEFORE_ANY)
                .into(),
        ),
        several => {
            let names: Vec<&str> = several.iter().map(|known| known.server.as_str()).collect();
            Err(Problem::usage("--set needs the name of a server")
                .hint(format!("known servers: {}", names.join(", ")))
                .into())
        }
    }
}

async fn change(cx: &Context, server: &str, set: SetBudget) -> anyhow::Result<Option<Changed>> {
    let budget = match set {
        SetBudget::Config => None,
        SetBudget::To(budget) => {
            let least = server::least(&cx.pool, server).await?;
            if !least.fits(budget) {
                return Err(too_small(server, budget, least).into());
            }
            Some(budget)
        }
    };
    Ok(server::override_budget(&cx.pool, server, budget).await?)
}

fn too_small(server: &str, budget: i32, least: Least) -> Problem {
    let job = count(u64::from(least.job.unsigned_abs()), "connection");
    let control = match least.control {
        0 => String::new(),
        n => format!(", and {n} are used by the workers themselves"),
    };
    Problem::usage(format!(
        "a budget of {budget} is too small for `{server}`: one job needs {job}{control}"
    ))
    .hint("`herder pause` stops a run")
}

/// Asks the servers about themselves.
async fn look(cx: &Context, known: Vec<BudgetView>) -> Vec<Server> {
    let names: Vec<&str> = known.iter().map(|known| known.server.as_str()).collect();
    let asked = budget::ask_each(cx, &names).await;
    let server = |(known, asked): (BudgetView, Result<Arithmetic, String>)| {
        let (sum, unknown) = match asked {
            Ok(sum) => (Some(sum), None),
            Err(why) => (None, Some(why)),
        };
        Server {
            headroom: sum.as_ref().map(Arithmetic::headroom),
            not_ours: sum.as_ref().map(|sum| sum.not_ours),
            max_connections: sum.as_ref().map(|sum| sum.max_connections),
            reserved: sum.as_ref().map(|sum| sum.reserved),
            known,
            unknown,
        }
    };
    known.into_iter().zip(asked).map(server).collect()
}

/// What a change means, for the person who made it.
fn say(changed: Changed, server: &Server) {
    let (name, budget, above) = (&server.known.server, changed.after, server.known.above);
    let was = match changed.before == budget {
        true => "unchanged".to_owned(),
        false => format!("was {}", changed.before),
    };
    output::say(&match server.known.overridden {
        Some(_) => format!(
            "Budget of `{name}` set to {budget} ({was}); `--set config` restores the configured value"
        ),
        None => format!("Budget of `{name}` restored to the configured {budget} ({was})"),
    });
    if above > 0 {
        output::say(&format!(
            "{} in use above the new budget: they finish normally and are not reused",
            count(u64::try_from(above).unwrap_or_default(), "connection")
        ));
    }
    if let Some(headroom) = server.headroom.filter(|headroom| *headroom < budget) {
        output::warning(&format!(
            "only {headroom} connections are available on the server now: jobs above that are refused, and wait"
        ));
    }
}

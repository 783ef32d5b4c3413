//! A plan that fits its tenants. A session of the project's driver may begin in another way than ours, and a revision may make
//! something of a tenant's name.

use std::collections::BTreeMap;

use super::{
    Migration, Rendered, Rendering, WarmError, offline,
    prover::why,
    runner::{AlembicRunner, settings, to_error},
    words::is_setting,
};
use crate::{
    domain::{
        plan::{Plan, PlanStep, SCHEMA, Session, StepForm},
        tenant::Place,
    },
    runner::{
        Ground, Offer,
        statement::{Words, statements, tokens},
    },
    session::quote,
    tenant_error::TenantError,
};

/// What our own sessions begin with, whatever the server has: sqlx says so when it connects.
const OURS: [(&str, &str); 4] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("extra_float_digits", "2"),
    (BACKSLASHES, "on"),
];

/// Whether a backslash in a literal is one. A plan's literals are written for sessions where it is.
const BACKSLASHES: &str = "standard_conforming_strings";

/// Other names of the same time zone.
const UTC: [&str; 4] = ["Etc/UTC", "UCT", "Etc/UCT", "Zulu"];

/// The plan for tenants like the one at `ground`, unless it would be another one for that tenant's name.
pub(super) async fn fit(
    runner: &AlembicRunner,
    plan: Plan,
    target: &str,
    ground: Ground<'_>,
) -> Result<Offer, TenantError> {
    let schema = ground.place.schema.as_deref();
    // Quotes, and what a driver doubles, are written in a literal otherwise than in a name.
    let is_comparable = |name: &str| !name.contains(['"', '\'', '\\', '%']);
    if schema.is_none_or(is_comparable) {
        let real = match rendered(runner, &plan, target, ground.place).await {
            Ok(steps) => steps,
            Err(why) => return Ok(Offer::Live { why }),
        };
        if in_schema(plan.steps.clone(), schema) != in_schema(real, schema) {
            let name = schema.unwrap_or(&ground.place.database);
            return Ok(Offer::Live {
                why: format!("it renders other SQL for `{name}` than for other names"),
            });
        }
    }
    let session = begun(runner, &plan, target, ground).await?;
    if let Some(value) = session.settings.get(BACKSLASHES) {
        return Ok(Offer::Live {
            why: format!("its sessions have {BACKSLASHES} {value}, and a plan's literals are written for on"),
        });
    }
    Ok(Offer::Plan(Plan { session, ..plan }))
}

/// How env.py's own connection differs from the plan's, which env.py may have seen to in its offline mode as well.
pub(super) fn deviation(plan: &Plan, session: &BTreeMap<String, String>) -> Option<String> {
    let expected = |name: &str| {
        let ours = OURS.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        plan.session.settings.get(name).map(String::as_str).or(ours)
    };
    let differs = |name: &str, value: &str| {
        let is_other = plan.session.settings.contains_key(name) || !is_ours(name, value);
        is_other && expected(name) != Some(value)
    };
    let (name, value) = session.iter().find(|(name, value)| differs(name, value))?;
    let says = |sql: &str| {
        let settings = statements(sql).filter(|text| is_setting(text));
        let mut settings = settings.map(|text| text.to_lowercase().replace(' ', ""));
        settings.any(|text| text.contains(&name.to_lowercase()))
    };
    let is_said = plan
        .steps
        .first()
        .is_some_and(|step| step.form.statements().any(says));
    (!is_said).then(|| format!("env.py works with {name} {value}, and a plan would not"))
}

/// The search_path that env.py sets before the first revision in its offline mode, as it is written there.
pub(super) fn search_path(plan: &Plan) -> Option<String> {
    let sql = plan.steps.first()?.form.statements().next()?;
    let mut path = None;
    for text in statements(sql) {
        let words = tokens(text);
        if !words.is(0, "set") {
            break;
        }
        let local = usize::from(words.is_any(1, &["local", "session"]));
        if words.is(1 + local, "search_path") {
            let behind = text.to_ascii_lowercase().find("search_path")? + "search_path".len();
            let value = text[behind..].trim_start();
            let value = value.strip_prefix('=').or_else(|| value.get(2..))?;
            path = Some(value.trim().to_owned());
        }
    }
    path
}

/// The steps for the names that a tenant really has.
async fn rendered(
    runner: &AlembicRunner,
    plan: &Plan,
    target: &str,
    place: &Place,
) -> Result<Vec<PlanStep>, String> {
    let rendering = Rendering {
        direction: plan.direction,
        heads: &plan.before,
        target,
        scheme: runner.scheme(),
        database: &place.database,
        schema: place.schema.as_deref(),
        env: false,
    };
    let mut process = runner.checkout().await.map_err(|e| e.to_string())?;
    let rendered = process.render(runner.project(), &rendering).await;
    match rendered.map_err(|e| e.to_string())? {
        Rendered::Script { events, .. } => offline::steps(&events, &plan.before, runner.version_table()),
        Rendered::Refused { refused } => Err(why(&refused)),
    }
}

/// What a session of the project's driver begins with there, where ours does not.
async fn begun(
    runner: &AlembicRunner,
    plan: &Plan,
    target: &str,
    ground: Ground<'_>,
) -> Result<Session, TenantError> {
    let (settings, application_name) = (settings(ground.limits), ground.label());
    let migration = Migration {
        direction: plan.direction,
        target,
        url: ground.url.expose(),
        scheme: runner.scheme(),
        schema: ground.place.schema.as_deref(),
        application_name: &application_name,
        settings: &settings,
    };
    let asked = runner
        .checkout()
        .await?
        .session(runner.project(), &migration)
        .await;
    match asked {
        Ok(mut session) => {
            session.settings.retain(|name, value| !is_ours(name, value));
            Ok(session)
        }
        // None of the drivers that are known is there, or it does not get there. What env.py's connection has is seen by the proof.
        Err(WarmError::Tool(_)) => Ok(Session::default()),
        Err(error) => Err(to_error(error)),
    }
}

/// Whether a setting is what our own sessions have, by that name or another.
fn is_ours(name: &str, value: &str) -> bool {
    // From 1 on, a float has all of its digits.
    let has_all_digits = || value.parse::<i32>().is_ok_and(|digits| digits > 0);
    OURS.contains(&(name, value))
        || name == "TimeZone" && UTC.contains(&value)
        || name == "extra_float_digits" && has_all_digits()
}

/// Steps in a tenant's schema, whose name needs no quotes. A made-up one does.
fn in_schema(mut steps: Vec<PlanStep>, schema: Option<&str>) -> Vec<PlanStep> {
    let Some(schema) = schema else { return steps };
    let place = |text: &mut String| *text = text.replace(SCHEMA, schema).replace(&quote(schema), schema);
    for step in &mut steps {
        match &mut step.form {
            StepForm::Transaction { sql } => place(sql),
            StepForm::Outside {
                statements, record, ..
            } => statements.iter_mut().chain(record).for_each(place),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_no_step_has_is_a_deviation() {
        let session = |zone: &str| BTreeMap::from([("TimeZone".to_owned(), zone.to_owned())]);
        let plan = |zone: Option<&str>, sql: &str| Plan {
            session: Session {
                settings: zone.map(session).unwrap_or_default(),
                defaults: None,
            },
            ..Plan::of_sql(sql)
        };
        let tokyo = session("Asia/Tokyo");
        assert_eq!(
            deviation(&plan(None, "select 1"), &tokyo).as_deref(),
            Some("env.py works with TimeZone Asia/Tokyo, and a plan would not")
        );
        assert_eq!(
            deviation(&plan(None, "SET LOCAL TIME ZONE 'Asia/Tokyo';"), &tokyo),
            None
        );
        assert_eq!(deviation(&plan(Some("Asia/Tokyo"), ""), &tokyo), None);
        assert_eq!(deviation(&plan(None, ""), &session("Etc/UTC")), None);
        assert!(deviation(&plan(Some("Asia/Tokyo"), ""), &session("UTC")).is_some());
    }
}

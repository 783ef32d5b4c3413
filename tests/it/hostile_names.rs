//! A thousand names that were meant to do harm: each is quoted, or refused by name, and nothing else is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use herder::config::ServerConfig;
use herder::flow::resolve::{Wanted, resolve};
use herder::secret::Secret;
use herder::servers::Servers;
use herder::tenant_source::Listed;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::fleet::{Fleet, Setup, Tenant, Tool, list, steps, tell};

/// What names are made of. Each of them means something to somebody on the way.
const PIECES: [&str; 52] = [
    "'",
    "\"",
    "\"\"",
    ";",
    "--",
    "/*",
    "*/",
    "$$",
    "$1",
    "$(touch pwned)",
    "`touch pwned`",
    "\\",
    "\\\"",
    "%",
    "%s",
    "%41",
    "%(here)s",
    "{schema}",
    "{tenant}",
    "{{",
    "${HOME}",
    "\n",
    "\r",
    "\t",
    "\0",
    " ",
    "ü",
    "é",
    "🐑",
    "\u{202e}",
    "\u{7f}",
    "\u{a0}",
    "public",
    "pg_",
    "Pg_",
    "select",
    "; drop schema public cascade; --",
    "'; drop schema public cascade; --",
    "\"; drop schema public cascade; --",
    "=",
    ",",
    ":",
    "@",
    "/",
    "?",
    "#",
    "&",
    "+",
    "|",
    "*",
    ".",
    "x",
];

/// Names that nobody has to be lucky to hit.
const FIXED: [&str; 18] = [
    "",
    " ",
    "  \t ",
    "public",
    "information_schema",
    "pg_catalog",
    "pg_toast",
    "pg_temp_1",
    "PG_upper",
    ".",
    "..",
    "herder",
    "apalis",
    "select",
    "user",
    "--help",
    "a\0b",
    "NULL",
];

/// A thousand of them, the same ones each time.
fn names() -> Vec<String> {
    let mut random = StdRng::seed_from_u64(4);
    let mut names: BTreeSet<String> = FIXED.map(str::to_owned).into();
    // To the byte, and with a character of several bytes across the border.
    names.extend([62, 63, 64, 65, 200].map(|length| "n".repeat(length)));
    names.extend([31, 32].map(|count| format!("a{}", "ü".repeat(count))));
    names.insert(format!("{}🐑", "s".repeat(60)));
    while names.len() < 1000 {
        let count = random.random_range(1..9);
        let name = (0..count).map(|_| PIECES[random.random_range(0..PIECES.len())]);
        names.insert(name.collect());
    }
    names.into_iter().collect()
}

fn servers() -> Servers {
    let config = ServerConfig {
        url: Secret::new("postgresql://h/home"),
        budget: None,
    };
    Servers::new(&BTreeMap::from([("main".to_owned(), config)])).expect("a server")
}

/// Why a name cannot be that of a schema or a database.
fn fault(name: &str, schema: bool) -> Option<&'static str> {
    match name {
        "" => Some("it is empty"),
        "." | ".." if !schema => Some("no URL can hold it"),
        _ if name.contains('\0') => Some("no name holds a NUL"),
        _ if name.len() > 63 => Some("longer than the 63 bytes"),
        _ if schema && (name.starts_with("pg_") || name == "information_schema") => {
            Some("it belongs to Postgres")
        }
        _ => None,
    }
}

#[test]
fn a_thousand_names_are_taken_as_they_are_or_refused_by_name() {
    let servers = servers();
    let (mut taken, mut refused) = (0, 0);
    for name in names() {
        let entry = |set: &dyn Fn(&mut Listed)| {
            let mut entry = Listed {
                id: "acme".into(),
                schema: Some("acme".into()),
                ..Listed::default()
            };
            set(&mut entry);
            vec![entry]
        };
        let as_schema = resolve(entry(&|e| e.schema = Some(name.clone())), &servers);
        let as_database = resolve(entry(&|e| e.database = Some(name.clone())), &servers);
        for (resolved, schema) in [(as_schema, true), (as_database, false)] {
            match (resolved, fault(&name, schema)) {
                (Ok(resolved), None) => {
                    let place = &resolved.tenants[0].place;
                    let found = if schema {
                        place.schema.as_deref()
                    } else {
                        Some(&*place.database)
                    };
                    assert_eq!(found, Some(name.as_str()));
                    let url = servers.url("main", Some(&place.database)).expect("a URL");
                    assert_eq!(url.database(), place.database);
                    let options = url.options().expect("options");
                    assert_eq!(options.get_database(), Some(place.database.as_str()));
                    assert_eq!((url.host().as_str(), options.get_host()), ("h", "h"));
                    taken += 1;
                }
                (Err(error), Some(why)) => {
                    let error = error.to_string();
                    let shown = name.escape_debug().to_string();
                    assert!(
                        error.contains("tenant `acme`") && error.contains(&shown) && error.contains(why),
                        "{error}"
                    );
                    refused += 1;
                }
                (resolved, fault) => panic!("{name:?}: {resolved:?}, but {fault:?}"),
            }
        }
        let as_id = resolve(entry(&|e| e.id = name.clone()), &servers);
        match as_id {
            Ok(resolved) => assert_eq!(resolved.tenants[0].id, name),
            Err(error) => {
                assert!(
                    name.trim().is_empty() || name.contains(char::is_control),
                    "{name:?}: {error}"
                );
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
        let wanted = Wanted {
            only: vec![name.clone()],
            labels: vec![name.parse().expect("a label")],
            ..Wanted::default()
        };
        let unknown = wanted.select(entry(&|_| {})).expect_err("it is not listed");
        assert!(!unknown.to_string().contains(char::is_control), "{unknown:?}");
    }
    assert!(taken > 1000 && refused > 100, "{taken} taken, {refused} refused");
}

/// All that there is in a database, but for what stands in the schemas of the tenants.
async fn bystanders(fleet: &Fleet) -> BTreeSet<String> {
    let schemas: Vec<&str> = fleet.tenants.iter().filter_map(|t| t.schema.as_deref()).collect();
    let objects = "select format('%s %s', n.nspname, o.name)
         from (select relnamespace as namespace, relname || ' ' || relkind::text || ' ' || coalesce(relacl::text, '') as name from pg_class
               union all select pronamespace, proname || ' ' || coalesce(proacl::text, '') from pg_proc
               union all select typnamespace, typname from pg_type) o
         join pg_namespace n on n.oid = o.namespace
         -- A table's long values are kept in another one.
         where n.nspname <> all ($1) and n.nspname <> 'pg_toast'
         union all select 'schema ' || nspname from pg_namespace
         union all select 'database ' || datname from pg_database where datname like $2
         order by 1";
    sqlx::query_scalar(objects)
        .bind(schemas)
        .bind(format!("{}%", fleet.database("")))
        .fetch_all(&fleet.home)
        .await
        .expect("a catalog")
        .into_iter()
        .collect()
}

#[tokio::test]
async fn a_fleet_with_hostile_names_is_migrated_and_nothing_else_is_touched() {
    // What the server itself does not take (a NUL), and `public`, which would be no bystander, are left out.
    let acceptable = |name: &String| fault(name, true).is_none() && name != "public";
    let tenants = names()
        .into_iter()
        .filter(acceptable)
        .enumerate()
        .map(|(n, name)| {
            let id = match name.trim().is_empty() || name.contains(char::is_control) {
                true => format!("number {n}"),
                false => name.clone(),
            };
            Tenant::schema(&id, &name)
        });
    let mut fleet = Setup::new(tenants.collect()).start().await;
    assert!(fleet.tenants.len() > 500, "{}", fleet.tenants.len());
    tell(&fleet.home, "create schema bystander; create table bystander.effects (step text); create table public.effects (step text)")
        .await;
    let before = bystanders(&fleet).await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_long("all are migrated", async || fleet.state().await != "running")
        .await;
    assert_eq!(fleet.state().await, "succeeded", "{}", worker.log());
    let after = bystanders(&fleet).await;
    let changed: Vec<_> = after.symmetric_difference(&before).collect();
    assert_eq!(changed, Vec::<&String>::new());
    // Each saw it once: one statement for all of them, quoted by the server itself.
    let each = "select string_agg(format('select %L, step from %I.effects', nspname, nspname), ' union all ' order by nspname)
                from pg_namespace n where exists (select from pg_class where relnamespace = n.oid and relname = 'effects')";
    let each: String = crate::fleet::ask(&fleet.home, each).await;
    let seen: Vec<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(each))
        .fetch_all(&fleet.home)
        .await
        .expect("effects");
    let seen: BTreeMap<String, String> = seen.into_iter().collect();
    let expected = fleet
        .tenants
        .iter()
        .map(|t| (t.schema.clone().expect("a schema"), "up 20250101".to_owned()));
    assert_eq!(seen, expected.collect());

    // On the command line.
    for tenant in fleet.tenants.iter().step_by(40) {
        let args = [&format!("--tenant={}", tenant.id), "--output-format=json"];
        let output = fleet
            .herder(&["tenants", args[0], args[1]])
            .await
            .expect(0)
            .json();
        assert_eq!(output["tenants"][0]["id"], *tenant.id, "{output}");
        assert_eq!(output["tenants"].as_array().map(Vec::len), Some(1), "{output}");
    }
    let unknown = fleet
        .herder(&[
            "plan",
            "--tenant",
            "'; drop schema public cascade; -- \n\u{1b}[2J",
        ])
        .await
        .expect(2);
    assert!(unknown.stderr.contains("\\n\\u{1b}[2J"), "{unknown:?}");

    // Found on the server, they are tenants under their own names; those that cannot be ids are refused by name.
    fleet.configure(|config| {
        let tenants: toml::Table = "source = 'schemas'\nexclude = ['bystander']"
            .parse()
            .expect("TOML");
        config.insert("tenants".into(), tenants.into());
    });
    let refused = fleet.herder(&["upgrade"]).await.expect(3);
    assert!(
        refused.stderr.contains("has a control character in its id"),
        "{refused:?}"
    );
    let schemas = fleet.tenants.iter().filter_map(|t| t.schema.clone());
    let blank: Vec<String> = schemas.filter(|name| name.trim().is_empty()).collect();
    fleet.configure(|config| {
        let odd = ["\n", "\r", "\t", "\u{7f}"].map(|c| format!("*{c}*"));
        let others = ["bystander", "herder", "apalis"].map(str::to_owned);
        let exclude: Vec<String> = odd.into_iter().chain(blank).chain(others).collect();
        config["tenants"]
            .as_table_mut()
            .expect("[tenants]")
            .insert("exclude".into(), exclude.into());
    });
    let found = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let found: BTreeSet<&str> = found["tenants"]
        .as_array()
        .expect("tenants")
        .iter()
        .filter_map(|t| t["id"].as_str())
        .collect();
    fleet
        .tenants
        .retain(|t| t.schema.as_deref() == Some(&t.id) && !["herder", "apalis"].contains(&&*t.id));
    let expected: BTreeSet<&str> = fleet.tenants.iter().map(|t| t.id.as_str()).collect();
    assert_eq!(found, expected);
    let again = fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    assert!(again.all().contains("already current"), "{again:?}");
}

#[tokio::test]
async fn files_carry_hostile_names_as_they_are() {
    let fleet = Setup::schemas(1).start().await;
    // In a file, blanks around a name do not count, and what is empty is absent.
    let fit = |name: &String| {
        fault(name, true).is_none() && name.trim() == name && !name.contains(char::is_control)
    };
    let names: Vec<String> = names().into_iter().filter(fit).step_by(3).collect();
    assert!(names.len() > 100, "{}", names.len());
    let entries: Vec<_> = names
        .iter()
        .map(|name| json!({"id": name, "schema": name}))
        .collect();
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(["id", "schema"]).expect("a header");
    for name in &names {
        csv.write_record([name, name]).expect("a row");
    }
    for (file, text) in [
        ("tenants.json", serde_json::to_string(&entries).expect("JSON")),
        ("tenants.yaml", serde_yaml_ng::to_string(&entries).expect("YAML")),
        (
            "tenants.toml",
            toml::to_string(&json!({"tenants": entries})).expect("TOML"),
        ),
        (
            "tenants.csv",
            String::from_utf8(csv.into_inner().expect("CSV")).expect("UTF-8"),
        ),
    ] {
        fs::write(fleet.dir().join(file), text).expect(file);
        fleet.configure(|config| {
            let tenants: toml::Table = format!("source = 'file'\npath = '{file}'").parse().expect("TOML");
            config.insert("tenants".into(), tenants.into());
        });
        let found = fleet
            .herder(&["tenants", "--output-format", "json"])
            .await
            .expect(0)
            .json();
        let found = found["tenants"].as_array().expect("tenants").iter();
        let found: Vec<(&str, &str)> = found
            .filter_map(|t| Some((t["id"].as_str()?, t["schema"].as_str()?)))
            .collect();
        let expected: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        assert_eq!(found, expected, "{file}");
    }
}

/// What a tool of the user's, or its way there, might take for something else.
const TO_TOOLS: [&str; 14] = [
    "a=b,c=d",
    "50%",
    "%(here)s",
    "%%",
    "co:lon",
    "it's",
    "back\\slash",
    "$HOME",
    "$(touch pwned)",
    "`touch pwned`",
    "{schema}",
    "new\nline",
    "; drop schema public cascade; --",
    " blanks ",
];

async fn tools_get_names_as_they_are(tool: Tool, plan: Option<&str>) {
    let mut names: Vec<String> = TO_TOOLS.map(str::to_owned).into();
    // The env.py quotes without a thought of quotes in a name. That is its own affair, and harms nobody else.
    if tool != Tool::Alembic {
        names.push("\"quoted\"".into());
    }
    let tenants = names.iter().enumerate().map(|(n, name)| {
        let id = if name.contains(char::is_control) {
            format!("number {n}")
        } else {
            name.clone()
        };
        Tenant::schema(&id, name)
    });
    let fleet = Setup::new(tenants.collect())
        .migrations(tool, steps(2))
        .start()
        .await;
    if let Some(plan) = plan {
        fleet.configure(|config| {
            config["runner"]
                .as_table_mut()
                .expect("[runner]")
                .insert("plan".into(), plan.into());
        });
    }
    let before = bystanders(&fleet).await;
    fleet.herder(&["upgrade", "--local", "3"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    fleet.assert_public_untouched().await;
    let after = bystanders(&fleet).await;
    let changed: Vec<_> = after.symmetric_difference(&before).collect();
    assert_eq!(changed, Vec::<&String>::new());
    let files: Vec<String> = ["", "project"]
        .iter()
        .flat_map(|folder| fs::read_dir(fleet.dir().join(folder)).expect("a folder"))
        .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!files.iter().any(|file| file == "pwned"), "{files:?}");
    let left = list(
        &fleet.home,
        "select nspname::text from pg_namespace where nspname like 'herder\\_shadow%'",
    )
    .await;
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn a_live_alembic_gets_hostile_names_as_they_are() {
    tools_get_names_as_they_are(Tool::Alembic, Some("never")).await;
}

#[tokio::test]
async fn plans_of_alembic_hold_hostile_names_as_they_are() {
    tools_get_names_as_they_are(Tool::Alembic, Some("auto")).await;
}

#[tokio::test]
async fn a_command_gets_hostile_names_as_they_are() {
    tools_get_names_as_they_are(Tool::Command, None).await;
}

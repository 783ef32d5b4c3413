//! Places with odd names, and places that are not there.

use crate::fleet::{Fleet, Setup, Tenant, Tool, steps, tell};
use crate::server::WITH_PASSWORD;

/// Each of them must be quoted everywhere, and none of them may be cut.
const ODD: [&str; 9] = [
    "Upper Case",
    "two  spaces ",
    "semi;colon; drop schema public cascade; --",
    "quote\"d",
    "it's",
    "Grüße/世界/🐑",
    "select",
    "percent%20and{braces}$dollar\\backslash",
    "sixty_three_bytes_is_all_that_postgres_keeps_of_a_name_so_here_t",
];

async fn odd_names_are_names(tool: Tool) {
    let tenants: Vec<Tenant> = ODD
        .iter()
        // The env.py quotes names without a thought of quotes in them. That is its own affair, and harms nobody else.
        .filter(|name| tool != Tool::Alembic || !name.contains('"'))
        .map(|name| {
            let name = name.get(..63).unwrap_or(name);
            Tenant::schema(&format!("tenant of {name}"), name)
        })
        .collect();
    let fleet = Setup::new(tenants).migrations(tool, steps(2)).start().await;
    fleet.herder(&["upgrade", "--local", "4"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    for tenant in &fleet.tenants {
        assert_eq!(fleet.job(&tenant.id).await["outcome"], "migrated");
    }
    fleet
        .herder(&["upgrade", "--tenant", "tenant of it's", "--local", "1"])
        .await
        .expect(0);
    fleet
        .herder(&["downgrade", "--to", "base", "--yes", "--local", "4"])
        .await
        .expect(0);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "down 20250102", "down 20250101"])
        .await;
    fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn odd_schema_names_are_only_names() {
    odd_names_are_names(Tool::Sql).await;
}

#[tokio::test]
async fn odd_schema_names_are_only_names_to_alembic() {
    odd_names_are_names(Tool::Alembic).await;
}

#[tokio::test]
async fn odd_schema_names_are_only_names_to_a_command() {
    odd_names_are_names(Tool::Command).await;
}

#[tokio::test]
async fn odd_database_names_are_only_names() {
    for tool in [Tool::Sql, Tool::Command, Tool::Alembic] {
        let mut fleet = Setup::schemas(1).migrations(tool, steps(2)).start().await;
        let mut odd = Vec::new();
        for name in ["Upper Case;", "quote\"d ' %41", "Grüße?a=b&c=d#e@f:g/h"] {
            let database = fleet.database(name);
            fleet.cluster.create(&herder::session::quote(&database)).await;
            odd.push(Tenant {
                id: name.to_owned(),
                database: Some(database),
                ..Tenant::default()
            });
        }
        fleet.tell("delete from tenants").await;
        fleet.tenants = odd;
        fleet.populate().await;
        fleet.herder(&["upgrade", "--local", "3"]).await.expect(0);
        fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    }
}

/// The job of a tenant, by where it stands and why.
async fn failed_with(fleet: &Fleet, tenant: &str, reason: &str, sqlstate: Option<&str>) {
    let job = fleet.job(tenant).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["attempts"], 1, "{job:#}");
    assert_eq!(job["error"]["reason"], reason, "{job:#}");
    assert_eq!(job["error"]["sqlstate"].as_str(), sqlstate, "{job:#}");
}

#[tokio::test]
async fn whoever_cannot_be_reached_holds_nobody_back() {
    let mut fleet = Setup::schemas(3).migrations(Tool::Sql, steps(2)).start().await;
    let role = fleet.database("role");
    tell(
        &fleet.home,
        &format!("create role {role} login password 'right' in role {WITH_PASSWORD} superuser"),
    )
    .await;
    let home = fleet.cluster.url(&fleet.database("home"));
    let url = |user: &str| home.replace("postgres@", user);
    let elsewhere = |id: &str, schema: &str, url: Option<String>| Tenant {
        url,
        ..Tenant::schema(id, schema)
    };
    let good = fleet.tenants.clone();
    let wrong = vec![
        elsewhere("right password", "secured", Some(url(&format!("{role}:right@")))),
        elsewhere("wrong password", "wrong", Some(url(&format!("{role}:wrong@")))),
        elsewhere("missing schema", "missing", None),
        Tenant {
            id: "missing database".into(),
            database: Some(fleet.database("missing")),
            ..Tenant::default()
        },
        elsewhere(
            "wrong port",
            "port",
            Some("postgresql://postgres@127.0.0.1:1/postgres".into()),
        ),
        elsewhere(
            "wrong host",
            "host",
            Some("postgresql://postgres@no-such-host.invalid/postgres".into()),
        ),
    ];
    fleet.tenants = wrong;
    fleet.list_tenants().await;
    tell(
        &fleet.home,
        "create schema secured; create table secured.effects (n int generated always as identity, step text)",
    )
    .await;

    let listed = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let mut unknown: Vec<&str> = listed["tenants"]
        .as_array()
        .expect("tenants")
        .iter()
        .filter(|t| t["status"] == "unknown")
        .filter_map(|t| t["id"].as_str())
        .collect();
    unknown.sort_unstable();
    assert_eq!(
        unknown,
        [
            "missing database",
            "missing schema",
            "wrong host",
            "wrong password",
            "wrong port"
        ],
        "{listed:#}"
    );

    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("all that can be reached is done", async || {
            fleet.count("succeeded").await == 4 && fleet.count("failed").await == 3
        })
        .await;
    failed_with(&fleet, "wrong password", "wrong_credentials", Some("28P01")).await;
    failed_with(&fleet, "missing schema", "schema_missing", Some("3F000")).await;
    failed_with(&fleet, "missing database", "database_missing", Some("3D000")).await;
    // Nobody takes what could not be read for a tenant that was never migrated.
    let status = fleet.herder(&["status"]).await.expect(0);
    assert_eq!(status.stdout.matches("? → 20250102").count(), 5, "{status:?}");
    let job = fleet.job("wrong password").await;
    assert_eq!(
        (&job["from_known"], &job["to_known"]),
        (&false.into(), &true.into()),
        "{job:#}"
    );
    // A server that is down may come back: these are tried again for a while.
    for tenant in ["wrong host", "wrong port"] {
        fleet
            .wait_until("it was tried", async || {
                !fleet.job(tenant).await["error"].is_null()
            })
            .await;
        let job = fleet.job(tenant).await;
        assert_eq!(job["error"]["reason"], "connection_lost", "{job:#}");
        assert_eq!(job["attempts"], 0, "{job:#}");
    }
    fleet.tenants = good;
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    fleet.assert_public_untouched().await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

/// Its source alone knows how to get there.
#[tokio::test]
async fn a_tenant_with_a_url_of_its_own_that_is_off_the_list_is_skipped() {
    let cluster = crate::fleet::Cluster::shared().await;
    let mut own = Tenant::schema("own", "public");
    own.url = Some(cluster.url("postgres"));
    let setup = Setup::new(vec![own, Tenant::schema("plain", "plain")]);
    let fleet = setup.start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.tell("delete from tenants where id = 'own'").await;
    fleet.herder(&["resume", "--local", "1"]).await.expect(0);
    let job = fleet.job("own").await;
    assert_eq!(
        (&job["state"], &job["error"]["reason"]),
        (&"skipped".into(), &"off_the_list".into()),
        "{job:#}"
    );
}

/// Somebody is writing it anew, or its query is wrong: a run must not succeed by that.
#[tokio::test]
async fn a_list_of_nobody_skips_nobody() {
    let cluster = crate::fleet::Cluster::shared().await;
    let mut own = Tenant::schema("own", "public");
    own.url = Some(cluster.url("postgres"));
    let setup = Setup::new(vec![own, Tenant::schema("dropped", "dropped")]);
    let fleet = setup.start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    tell(&fleet.home, "drop schema dropped cascade").await;
    fleet.tell("alter table tenants rename to listed").await;
    fleet
        .tell("create table tenants as select * from listed limit 0")
        .await;
    fleet.herder(&["resume", "--local", "1"]).await.expect(4);
    failed_with(&fleet, "own", "off_the_list", None).await;
    failed_with(&fleet, "dropped", "schema_missing", Some("3F000")).await;
    for tenant in ["own", "dropped"] {
        let hint = &fleet.job(tenant).await["error"]["hint"];
        let hint = hint.as_str().unwrap_or_default();
        assert!(hint.contains("a list of nobody"), "{hint}");
    }

    fleet
        .tell("insert into tenants select * from listed where id = 'dropped'")
        .await;
    fleet.herder(&["retry", "--local", "1"]).await.expect(4);
    assert_eq!(fleet.job("own").await["state"], "skipped");
}

#[tokio::test]
async fn a_tenant_that_is_dropped_meanwhile_fails_or_is_skipped_if_it_is_off_the_list() {
    let mut fleet = Setup::schemas(4).migrations(Tool::Sql, steps(2)).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    tell(&fleet.home, "drop schema t001 cascade; drop schema t002 cascade").await;
    fleet.tell("delete from tenants where id = 't001'").await;
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    let job = fleet.job("t001").await;
    assert_eq!(job["state"], "skipped", "{job:#}");
    failed_with(&fleet, "t002", "schema_missing", Some("3F000")).await;
    fleet.tenants.drain(..2);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    fleet.assert_public_untouched().await;
    // Taken off the list, too, it fails nobody any more.
    fleet.tell("delete from tenants where id = 't002'").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    assert_eq!(fleet.count("skipped").await, 2);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_search_path_that_leads_nowhere_is_no_missing_privilege() {
    let fleet = Setup::databases(1).migrations(Tool::Sql, steps(1)).start().await;
    let database = fleet.tenants[0].database.as_deref().expect("its own");
    fleet
        .tell(&format!("alter database \"{database}\" set search_path = ''"))
        .await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let tenant = fleet.tenants[0].id.clone();
    failed_with(&fleet, &tenant, "schema_missing", Some("3F000")).await;
    let error = fleet.job(&tenant).await["error"].to_string();
    assert!(error.contains("ALTER DATABASE"), "{error}");
}

#[tokio::test]
async fn check_names_the_places_that_are_not_there() {
    let fleet = Setup::databases(2).set("servers.main.budget", 4).start().await;
    let gone = |n: usize| format!("insert into tenants (id, database) values ('gone{n}', 'nowhere_{n}')");
    // The first one on the list is no exception.
    fleet.tell("delete from tenants").await;
    fleet.tell(&gone(1)).await;
    fleet.list_tenants().await;
    for n in 2..=4 {
        fleet.tell(&gone(n)).await;
    }
    let report = fleet.herder(&["check", "--output-format", "json"]).await;
    let report = report.expect(7).json();
    let all = report.to_string();
    assert!(
        all.contains(
            "4 of 6 tenants cannot be read: gone1: database \\\"nowhere_1\\\" does not exist; gone2: "
        ),
        "{report:#}"
    );
    assert!(all.contains("; and 1 more"), "{report:#}");
    let check = |text: &str| {
        let checks = report["checks"].as_array().expect("checks");
        checks
            .iter()
            .find_map(|c| c[text].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    // What there is nothing to grant on is left out.
    assert!(check("sql").contains("GRANT"), "{report:#}");
    assert!(!check("sql").contains("nowhere"), "{report:#}");
}

#[tokio::test]
async fn check_names_the_schemas_that_are_not_there() {
    let fleet = Setup::schemas(2).start().await;
    fleet
        .tell("insert into tenants (id, schema) values ('gone', 'nowhere')")
        .await;
    let report = fleet.herder(&["check"]).await.expect(7);
    assert!(
        report
            .stdout
            .contains("1 of 3 tenants cannot be read: gone: schema `nowhere` does not exist"),
        "{report:?}"
    );
}

/// Somebody made it by hand, or as a view of another one.
#[tokio::test]
async fn a_ledger_that_cannot_be_understood_holds_nobody_back() {
    let fleet = Setup::schemas(3)
        .migrations(Tool::Alembic, steps(1))
        .start()
        .await;
    tell(
        &fleet.home,
        "create view t002.alembic_version as select null::text as version_num",
    )
    .await;
    let args = ["tenants", "--revisions", "--output-format", "json"];
    let counts = fleet.herder(&args).await.expect(0).json()["counts"].clone();
    assert_eq!(
        (&counts["never_migrated"], &counts["unknown"]),
        (&2.into(), &1.into())
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    assert_eq!(fleet.count("succeeded").await, 2);
    // It is no connection that was lost: nobody waits for that to pass.
    failed_with(&fleet, "t002", "unexpected_answer", None).await;
}

/// Only the list knows the way to such a tenant. That it cannot be asked says nothing of the tenant's server.
#[tokio::test]
async fn a_list_that_cannot_be_asked_is_no_fault_of_the_tenants_server() {
    let fleet = Setup::schemas(1).start().await;
    let url = fleet.cluster.url(&fleet.database("home"));
    fleet.tell(&format!("update tenants set url = '{url}'")).await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.tell("alter table tenants rename to listed").await;
    let worker = fleet.worker(&[]);
    fleet
        .wait_until("it was tried", async || {
            !fleet.job("t001").await["error"].is_null()
        })
        .await;
    let job = fleet.job("t001").await;
    assert_eq!(job["error"]["reason"], "tenant_source_failed", "{job:#}");
    assert_eq!(job["attempts"], 0, "{job:#}");
    fleet.tell("alter table listed rename to tenants").await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(worker.drain().await, Some(0));
}

/// A config whose only server does not take its password makes no run: every tenant would fail by it.
#[tokio::test]
async fn a_config_with_a_wrong_password_makes_no_run() {
    let fleet = Setup::schemas(2).start().await;
    let role = fleet.database("mistyped");
    let make = format!("create role {role} login password 'right' in role {WITH_PASSWORD} superuser");
    tell(&fleet.home, &make).await;
    let home = fleet.cluster.url(&fleet.database("home"));
    let lead = |password: &str| {
        let url = home.replace("postgres@", &format!("{role}:{password}@"));
        fleet.configure(|config| config["servers"]["main"]["url"] = url.clone().into());
    };
    lead("wrong");
    let refused = fleet.herder(&["upgrade"]).await.expect(3).all();
    assert!(
        refused.contains("server `main` cannot be used by its url")
            && refused.contains("hint: check user and password in the URL"),
        "{refused}"
    );
    assert_eq!(fleet.state().await, "none");
    lead("right");
    fleet.herder(&["upgrade"]).await.expect(0);
}

/// A tenant whose migrations cannot be read stands where it stands all the same.
#[tokio::test]
async fn where_a_tenant_stands_is_known_though_nobody_knows_the_way() {
    let [first, second] = steps(2).try_into().expect("two");
    let second = second.then("copy effects (step) from stdin");
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![first, second])
        .start()
        .await;
    fleet
        .herder(&["upgrade", "--to", "20250101", "--local", "1"])
        .await
        .expect(0);
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let job = fleet.job("t001").await;
    assert_eq!(
        (&job["from"], &job["from_known"]),
        (&"20250101".into(), &true.into()),
        "{job:#}"
    );
}

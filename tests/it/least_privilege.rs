//! A whole fleet by roles that may do no more than they must: neither superuser nor owner of anything but the tenants.

use sqlx::{Connection, PgConnection};

use crate::fleet::{Fleet, Setup, Tenant, Tool, steps, tell};

/// The budget, and the migrator's own limit: the server would refuse a connection beyond it.
const BUDGET: i64 = 9;

/// The roles of a fleet. All of them log in, and none is more than that.
struct Roles {
    /// Makes the control tables. Owns the control database.
    maker: String,
    /// Workers and commands. Uses the control tables.
    worker: String,
    /// Reads the tenant list.
    reader: String,
    /// Owns the tenants.
    migrator: String,
}

impl Roles {
    /// Makes them, and gives them to a fleet whose control database is not set up yet.
    async fn give_to(fleet: &Fleet) -> Self {
        let role = |name: &str| fleet.database(name);
        let roles = Self {
            maker: role("maker"),
            worker: role("worker"),
            reader: role("reader"),
            migrator: role("migrator"),
        };
        for (role, limit) in [
            (&roles.maker, -1),
            (&roles.worker, -1),
            (&roles.reader, -1),
            (&roles.migrator, BUDGET),
        ] {
            let make = format!(
                "create role {role} login nosuperuser nocreatedb nocreaterole noreplication connection limit {limit}"
            );
            fleet.tell(&make).await;
        }
        fleet
            .tell("drop schema herder, apalis cascade; drop extension hstore, pgcrypto")
            .await;
        let control = fleet.database("control");
        fleet
            .tell(&format!("alter database {control} owner to {}", roles.maker))
            .await;
        fleet
            .tell(&format!("grant select on tenants to {}", roles.reader))
            .await;
        roles.own_tenants(fleet).await;
        let as_role = |url: &mut toml::Value, role: &str| {
            *url = url
                .as_str()
                .expect("a URL")
                .replace("postgres@", &format!("{role}@"))
                .into();
        };
        fleet.configure(|config| {
            as_role(&mut config["control"]["url"], &roles.maker);
            as_role(&mut config["tenants"]["url"], &roles.reader);
            as_role(&mut config["servers"]["main"]["url"], &roles.migrator);
        });
        // The others may do nothing yet, and are told whom to ask.
        Self::connect_as(fleet, &roles.maker, &roles.worker);
        let refused = fleet.herder(&["setup"]).await.expect(3);
        assert!(refused.stderr.contains("herder setup --grant"), "{refused:?}");
        Self::connect_as(fleet, &roles.worker, &roles.maker);
        fleet.herder(&["setup"]).await.expect(0);
        Self::connect_as(fleet, &roles.maker, &roles.worker);
        let refused = fleet.herder(&["runs"]).await.expect(3);
        let hint = format!("herder setup --grant {}", roles.worker);
        assert!(refused.stderr.contains(&hint), "{refused:?}");
        Self::connect_as(fleet, &roles.worker, &roles.maker);
        let absent = fleet
            .herder(&["setup", "--grant", "nobody at all"])
            .await
            .expect(3);
        assert!(absent.stderr.contains("create the role first"), "{absent:?}");
        for _ in 0..2 {
            fleet.herder(&["setup", "--grant", &roles.worker]).await.expect(0);
        }
        Self::connect_as(fleet, &roles.maker, &roles.worker);
        // As an init container does each time.
        fleet.herder(&["setup"]).await.expect(0);
        roles
    }

    fn connect_as(fleet: &Fleet, before: &str, role: &str) {
        fleet.configure(|config| {
            let url = config["control"]["url"].as_str().expect("a URL");
            config["control"]["url"] = url.replace(&format!("{before}@"), &format!("{role}@")).into();
        });
    }

    async fn own_tenants(&self, fleet: &Fleet) {
        let to = &self.migrator;
        for tenant in &fleet.tenants {
            match &tenant.database {
                None => {
                    let schema = tenant.schema_name();
                    let own = format!(
                        "alter schema {schema} owner to {to}; alter table {schema}.effects owner to {to}"
                    );
                    tell(&fleet.home, &own).await;
                }
                Some(database) => {
                    let pool = fleet.pool(database);
                    let own =
                        format!("alter database {database} owner to {to}; alter table effects owner to {to}");
                    tell(&pool, &own).await;
                    pool.close().await;
                }
            }
        }
    }
}

fn three(tool: Tool, setup: Setup, gated: bool) -> Setup {
    let [first, second, third] = steps(3).try_into().expect("three");
    let second = if gated { second.gated() } else { second };
    setup
        .migrations(tool, vec![first, second, third])
        .set("servers.main.budget", BUDGET)
}

const ALL: [&str; 3] = ["up 20250101", "up 20250102", "up 20250203"];

/// Two workers, one of them killed in the middle, and every command there is.
async fn a_fleet_needs_no_more(tool: Tool) {
    let fleet = three(tool, Setup::schemas(12), true).start().await;
    let roles = Roles::give_to(&fleet).await;
    for command in [&["check"][..], &["tenants", "--revisions"], &["plan"], &["runs"]] {
        fleet.herder(command).await.expect(0);
    }
    let gate = fleet.close_gate().await;
    let doomed = fleet.worker(&["--concurrency", "8", "--name", "doomed"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    // How many at a time is the budget's affair.
    fleet
        .wait_until("a tenant is in the middle", async || fleet.at_gate().await > 0)
        .await;
    let heir = fleet.worker(&["--concurrency", "8", "--name", "heir", "--listen", "127.0.0.1:0"]);
    doomed.kill().await;
    let rescued = "select count(*) from herder.attempt where result = 'rescued'";
    fleet
        .wait_until("the dead worker's jobs are taken over", async || {
            fleet.ask::<i64>(rescued).await > 0 && fleet.at_gate().await > 0
        })
        .await;
    for command in [
        &["pause"][..],
        &["status"],
        &["status", "--failed"],
        &["report"],
        &["resume"],
    ] {
        fleet.herder(command).await.expect(0);
    }
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&ALL).await;
    fleet.assert_public_untouched().await;
    let as_whom = format!(
        "select count(*) from pg_class where relowner <> '{}'::regrole and relnamespace::regnamespace::text like 't0%'",
        roles.migrator
    );
    assert_eq!(crate::fleet::ask::<i64>(&fleet.home, &as_whom).await, 0);
    assert!(heir.metric("herder_connections_budget").await > 0.0);
    assert_eq!(heir.drain().await, Some(0));
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes", "--local", "2"])
        .await
        .expect(0);
    let run = fleet.start_herder(&["upgrade"]);
    run.end().await.expect(0);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
}

#[tokio::test]
async fn roles_without_privileges_are_enough_for_sql() {
    a_fleet_needs_no_more(Tool::Sql).await;
}

#[tokio::test]
async fn roles_without_privileges_are_enough_for_alembic() {
    a_fleet_needs_no_more(Tool::Alembic).await;
}

#[tokio::test]
async fn roles_without_privileges_are_enough_for_a_command() {
    a_fleet_needs_no_more(Tool::Command).await;
}

#[tokio::test]
async fn roles_without_privileges_are_enough_for_databases() {
    for tool in [Tool::Sql, Tool::Alembic] {
        let fleet = three(tool, Setup::databases(3), false).start().await;
        // Without a right to make databases, a plan cannot be proven: Alembic itself does it then.
        if tool == Tool::Alembic {
            fleet.configure(|config| {
                config["runner"]
                    .as_table_mut()
                    .expect("[runner]")
                    .insert("plan".into(), "auto".into());
            });
        }
        Roles::give_to(&fleet).await;
        fleet.herder(&["upgrade", "--local", "4"]).await.expect(0);
        fleet.assert_effects(&ALL).await;
    }
}

#[tokio::test]
async fn a_lock_of_another_role_is_waited_for() {
    let fleet = three(Tool::Sql, Setup::schemas(2), false).start().await;
    Roles::give_to(&fleet).await;
    let place = herder::domain::tenant::Place {
        server: "main".into(),
        database: fleet.database("home"),
        schema: Some("t001".into()),
    };
    let mut stranger = PgConnection::connect(&fleet.cluster.url(&place.database))
        .await
        .expect("a connection");
    sqlx::query("select pg_advisory_lock($1)")
        .bind(herder::session::lock_key(&place))
        .execute(&mut stranger)
        .await
        .expect("the lock");
    let run = fleet.start_herder(&["upgrade", "--local", "2"]);
    let seen =
        "select count(*) from herder.job where tenant = 't001' and error->>'reason' = 'locked_by_other'";
    fleet
        .wait_until("the lock is in the way", async || {
            fleet.ask::<i64>(seen).await == 1
        })
        .await;
    stranger.close().await.expect("an end");
    run.end().await.expect(0);
    fleet.assert_effects(&ALL).await;
}

/// Two tenants come as roles that may not end each other's sessions.
#[tokio::test]
async fn each_lost_session_is_ended_by_its_own_role() {
    // Both slots are with the dead worker: nobody can take over before they are reclaimed.
    let setup = three(Tool::Sql, Setup::schemas(2), true).set("servers.main.budget", 3);
    let mut fleet = setup.start().await;
    let home = fleet.cluster.url(&fleet.database("home"));
    for n in 0..2 {
        let role = fleet.database(&format!("role{n}"));
        let schema = fleet.tenants[n].schema_name();
        let make = format!(
            "create role {role} login; alter schema {schema} owner to {role}; alter table {schema}.effects owner to {role}"
        );
        tell(&fleet.home, &make).await;
        fleet.tenants[n] = Tenant {
            url: Some(home.replace("postgres@", &format!("{role}@"))),
            ..fleet.tenants[n].clone()
        };
    }
    fleet.tell("delete from tenants").await;
    fleet.list_tenants().await;
    let gate = fleet.close_gate().await;
    let doomed = fleet.worker(&["--name", "doomed"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    // Stopped, it holds its sessions; its lease runs out all the same.
    doomed.signal(rustix::process::Signal::STOP);
    let heir = fleet.worker(&["--name", "heir"]);
    let reclaimed = "select count(*) from herder.slot where suspect_since is not null";
    fleet
        .wait_until("both were taken over, and nothing is suspect", async || {
            let rescued: i64 = fleet
                .ask("select count(*) from herder.attempt where result = 'rescued'")
                .await;
            rescued == 2 && fleet.ask::<i64>(reclaimed).await == 0 && fleet.at_gate().await == 2
        })
        .await;
    assert_eq!(fleet.sessions().await, 2);
    doomed.kill().await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&ALL).await;
    assert_eq!(heir.drain().await, Some(0));
}

/// A schema that is there, and that the role may not even look into, is not one to be made.
async fn a_schema_that_may_not_be_used_is_not_called_missing(tool: Tool) {
    let fleet = three(tool, Setup::schemas(2), false).start().await;
    let roles = Roles::give_to(&fleet).await;
    tell(&fleet.home, "alter schema t002 owner to postgres").await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let error = &fleet.job("t002").await["error"];
    assert_eq!(error["reason"], "permission_denied", "{error:#}");
    assert_eq!(error["sqlstate"], "42501", "{error:#}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("no USAGE on schema `t002`"), "{error:#}");
    let mend = format!("grant usage, create on schema t002 to {}", roles.migrator);
    tell(&fleet.home, &mend).await;
    fleet.herder(&["retry", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
}

#[tokio::test]
async fn a_schema_without_usage_is_named_by_a_plan() {
    a_schema_that_may_not_be_used_is_not_called_missing(Tool::Sql).await;
}

#[tokio::test]
async fn a_schema_without_usage_is_named_beside_a_command() {
    a_schema_that_may_not_be_used_is_not_called_missing(Tool::Command).await;
}

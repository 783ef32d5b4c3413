//! A project: a control database, tenants in groups, and migrations that leave traces.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::PgPool;

use crate::args::Args;
use crate::fleet::{self, Step, Tool, steps};
use crate::world::{World, one, rows};

/// The control server's place in [`World::servers`].
pub(crate) const CONTROL: usize = 0;

/// Those of the tenants.
pub(crate) const TENANTS: [usize; 2] = [1, 2];

/// Keeps an attempt busy now and then, so that faults meet it in the middle.
const WORK: &str = "select pg_sleep(case when random() < 0.1 then 0.7 else 0.01 end)";

/// A group of tenants: what one run takes up or down.
pub(crate) struct Group {
    pub(crate) letter: char,
    /// Per server: its index, the database, and the schemas in it.
    pub(crate) places: Vec<(usize, String, Vec<String>)>,
    /// The config of its enqueuer.
    pub(crate) config: String,
}

/// A project.
pub(crate) struct Project {
    pub(crate) name: &'static str,
    pub(crate) tool: Tool,
    pub(crate) groups: Vec<Group>,
    /// Connections to each server of the tenants.
    pub(crate) budget: u32,
    /// How many workers there are at least and at most.
    pub(crate) crew: (usize, usize),
    /// Jobs at a time in each.
    pub(crate) concurrency: usize,
    pub(crate) dir: PathBuf,
    pub(crate) control: PgPool,
    runner: toml::Table,
    /// What a tenant shows after going up, and after going down.
    up: Vec<String>,
    down: Vec<String>,
}

impl Project {
    /// All projects, each for another tool.
    pub(crate) async fn all(world: &Arc<World>, args: &Args) -> Vec<Arc<Self>> {
        let small = (args.tenants / 10).clamp(4, 16);
        let mut projects = Vec::new();
        for (name, tool, tenants, budget, crew, concurrency) in [
            ("sql", Tool::Sql, args.tenants, 10, (3, 9), 4),
            ("command", Tool::Command, small, 5, (2, 4), 2),
            ("alembic", Tool::Alembic, small, 5, (2, 3), 2),
        ] {
            if args.only.as_deref().is_some_and(|only| only != name) {
                continue;
            }
            let project = Self::make(world, name, tool, tenants, budget, crew, concurrency).await;
            world.say(&format!(
                "project {name}: {} groups of {tenants} tenants",
                project.groups.len()
            ));
            projects.push(Arc::new(project));
        }
        projects
    }

    async fn make(
        world: &Arc<World>,
        name: &'static str,
        tool: Tool,
        tenants: usize,
        budget: u32,
        crew: (usize, usize),
        concurrency: usize,
    ) -> Self {
        let dir = world.dir.join(name);
        fs::create_dir(&dir).expect("a folder");
        let cluster = &world.servers[CONTROL].cluster;
        let files = fleet::Project::write(tool, &dir, cluster, &traced());
        if tool == Tool::Sql {
            // In no transaction: an attempt may end between the index and its line in the ledger.
            files.file(
                "20250303_index.up.sql",
                "-- no-transaction\ncreate index concurrently item_note on item (note);\n",
            );
            files.file(
                "20250303_index.down.sql",
                "-- no-transaction\ndrop index concurrently item_note;\n",
            );
        }
        let control = format!("{name}_control");
        cluster.control(&control).await;
        let ids: Vec<&str> = traced_ids();
        let mut project = Self {
            name,
            tool,
            groups: Vec::new(),
            budget,
            crew,
            concurrency,
            control: world.servers[CONTROL].pool(&control),
            runner: files.runner(),
            up: ids.iter().map(|id| format!("up {id}")).collect(),
            down: ids.iter().rev().map(|id| format!("down {id}")).collect(),
            dir,
        };
        project.make_roles(world).await;
        for letter in ['a', 'b'] {
            let group = project.make_group(world, letter, tenants).await;
            project.groups.push(group);
        }
        project
    }

    /// Each process logs in as somebody else, so that the servers can tell whose session is whose.
    pub(crate) fn role(&self, number: usize) -> String {
        format!("{}_{number:04}", self.name)
    }

    async fn make_roles(&self, world: &World) {
        for server in &world.servers {
            let pool = server.pool("postgres");
            let make = format!(
                "do $$ begin for n in 0..{ENQUEUER} loop
                     execute format('create role %I superuser login', '{}_' || lpad(n::text, 4, '0'));
                 end loop; end $$",
                self.name
            );
            fleet::tell(&pool, &make).await;
            pool.close().await;
        }
    }

    async fn make_group(&self, world: &World, letter: char, tenants: usize) -> Group {
        let database = format!("{}_{letter}", self.name);
        let (mut places, mut list) = (Vec::new(), "id,server,database,schema\n".to_owned());
        for (nth, server) in TENANTS.into_iter().enumerate() {
            let at = &world.servers[server];
            at.cluster.create(&database).await;
            let schemas: Vec<String> = (nth..tenants)
                .step_by(2)
                .map(|n| format!("{letter}{n:04}"))
                .collect();
            let pool = at.pool(&database);
            for some in schemas.chunks(100) {
                let make: String = some.iter().fold(String::new(), |mut sql, schema| {
                    let _ = write!(
                        sql,
                        "create schema {schema};
                         create table {schema}.effects (n int generated always as identity, step text);"
                    );
                    sql
                });
                fleet::tell(&pool, &make).await;
            }
            pool.close().await;
            for schema in &schemas {
                let _ = writeln!(list, "{schema},{},{database},{schema}", at.name);
            }
            places.push((server, database.clone(), schemas));
        }
        fs::write(self.dir.join(format!("tenants-{letter}.csv")), list).expect("a list");
        let config = format!("group-{letter}.toml");
        let ports: Vec<u16> = world.servers.iter().map(|s| s.cluster.server().port()).collect();
        self.configure(&config, letter, &self.role(ENQUEUER), &ports);
        Group {
            letter,
            places,
            config,
        }
    }

    /// Writes a config for somebody who logs in as `role` and finds the servers at these ports.
    pub(crate) fn configure(&self, file: &str, letter: char, role: &str, ports: &[u16]) {
        let url = |server: usize, database: &str| {
            format!("postgresql://{role}@127.0.0.1:{}/{database}", ports[server])
        };
        let (name, budget) = (self.name, self.budget);
        let mut config: toml::Table = format!(
            "control.url = '{}'
             tenants = {{ source = 'file', path = 'tenants-{letter}.csv' }}
             servers.east = {{ url = '{}', budget = {budget} }}
             servers.west = {{ url = '{}', budget = {budget} }}",
            url(CONTROL, &format!("{name}_control")),
            url(TENANTS[0], "postgres"),
            url(TENANTS[1], "postgres"),
        )
        .parse()
        .expect("TOML");
        let mut runner = self.runner.clone();
        if self.tool == Tool::Alembic {
            // One group by plans, the other one live.
            let plan = if letter == 'a' { "auto" } else { "never" };
            runner.insert("plan".into(), plan.into());
        }
        config.insert("runner".into(), runner.into());
        fs::write(self.dir.join(file), toml::to_string(&config).expect("TOML")).expect("a config");
    }

    /// What a tenant shows after one more round.
    pub(crate) fn effects(&self, up: bool) -> &[String] {
        if up { &self.up } else { &self.down }
    }

    /// What is left on the servers once all is over: sessions, locks and slots.
    pub(crate) async fn leftovers(&self, world: &World) -> Vec<String> {
        let mut left = Vec::new();
        for server in &world.servers {
            let pool = server.pool("postgres");
            let sessions: Vec<(String,)> = rows(
                &pool,
                &format!(
                    "select concat_ws(' ', '{}', application_name, state, left(query, 60)) from pg_stat_activity
                     where usename like '{}\\_%'
                     union all
                     select concat_ws(' ', '{0}', 'an advisory lock in', datname, classid, objid) from pg_locks
                     join pg_database on pg_database.oid = database
                     where locktype = 'advisory' and datname like '{1}\\_%'",
                    server.name, self.name
                ),
            )
            .await;
            left.extend(sessions.into_iter().map(|s| s.0));
            pool.close().await;
        }
        let slots: i64 = one(
            &self.control,
            "select count(*) from herder.slot where worker is not null",
        )
        .await;
        if slots > 0 {
            left.push(format!("{slots} slots of {} are taken", self.name));
        }
        left
    }
}

/// The last of a project's logins is its enqueuers'. Those before are its workers', a new one for each: far more than an
/// hour of faults needs.
const ENQUEUER: usize = 3000;

fn traced_ids() -> Vec<&'static str> {
    traced().iter().map(|step| step.id).collect()
}

/// Three migrations that fail when they are done twice in a row, and leave a line when they are done at all.
fn traced() -> Vec<Step> {
    let [first, second, third] = steps(3).try_into().expect("three");
    vec![
        first
            .then("create table item (id int primary key, name text)")
            .undone_by("drop table item"),
        second
            .then("alter table item add column note text")
            .then(WORK)
            .undone_by("alter table item drop column note"),
        third
            .then("alter table item add column weight int")
            .undone_by("alter table item drop column weight"),
    ]
}

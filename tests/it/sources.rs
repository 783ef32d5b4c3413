//! Every kind of tenant source feeds a run.

use std::fs;

use toml::Table;

use crate::fleet::{Fleet, Setup, Tenant, Tool, steps, tell};

/// Three schemas, and `[tenants]` as it is given. `{control}` in it is the URL of the control database.
async fn feeds_a_run(fleet: &Fleet, tenants: &str) {
    let control = fleet.cluster.url(&fleet.database("control"));
    let tenants: Table = tenants.replace("{control}", &control).parse().expect("TOML");
    fleet.configure(|config| {
        config.insert("tenants".into(), tenants.into());
    });
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    let status = fleet.status().await;
    let mut ids: Vec<&str> = status["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .filter_map(|job| job["tenant"].as_str())
        .collect();
    ids.sort_unstable();
    let listed: Vec<&str> = fleet.tenants.iter().map(|t| t.id.as_str()).collect();
    assert_eq!(ids, listed, "{status:#}");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

async fn schemas() -> Fleet {
    Setup::schemas(3).migrations(Tool::Sql, steps(2)).start().await
}

#[tokio::test]
async fn a_file_feeds_a_run_in_each_of_its_formats() {
    for (name, text) in [
        ("tenants.csv", "id,schema\nt001,t001\nt002,t002\nt003,t003\n"),
        (
            "tenants.json",
            r#"[{"id": "t001", "schema": "t001"}, {"id": "t002", "schema": "t002"}, {"id": "t003", "schema": "t003"}]"#,
        ),
        (
            "tenants.yaml",
            "- {id: t001, schema: t001}\n- {id: t002, schema: t002}\n- {id: t003, schema: t003}\n",
        ),
        (
            "tenants.toml",
            "[[tenants]]\nid = 't001'\nschema = 't001'\n[[tenants]]\nid = 't002'\nschema = 't002'\n[[tenants]]\nid = 't003'\nschema = 't003'\n",
        ),
    ] {
        let fleet = schemas().await;
        fs::write(fleet.dir().join(name), text).expect(name);
        feeds_a_run(&fleet, &format!("source = 'file'\npath = '{name}'")).await;
    }
}

#[tokio::test]
async fn the_schemas_of_a_database_feed_a_run() {
    let fleet = schemas().await;
    tell(&fleet.home, "create schema template; create schema billing").await;
    feeds_a_run(
        &fleet,
        "source = 'schemas'\npattern = 't*'\nexclude = ['template']",
    )
    .await;
    fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn the_databases_of_a_server_feed_a_run() {
    let mut fleet = Setup::databases(3).migrations(Tool::Sql, steps(2)).start().await;
    for tenant in &mut fleet.tenants {
        tenant.id = tenant.database.clone().expect("a database");
    }
    let pattern = fleet.database("t*");
    feeds_a_run(&fleet, &format!("source = 'databases'\npattern = '{pattern}'")).await;
}

#[tokio::test]
async fn the_table_of_fastapi_tenancy_feeds_a_run() {
    let mut fleet = Setup::databases(1).migrations(Tool::Sql, steps(2)).start().await;
    let database = fleet.tenants.remove(0).database.expect("a database");
    fleet.tenants = vec![
        Tenant::schema("a", "tenant_acme_corp"),
        Tenant {
            database: Some(database.clone()),
            ..Tenant::schema("b", "public")
        },
        Tenant::schema("c", "its own"),
    ];
    fleet.populate().await;
    fleet.tell("alter table tenants rename to catalog").await;
    fleet.tell(include_str!("../fixtures/fastapi_tenancy.sql")).await;
    let url = fleet
        .cluster
        .url(&database)
        .replace("postgresql://", "postgresql+asyncpg://");
    fleet
        .tell(&format!(
            "insert into tenants (id, identifier, name, status, isolation_strategy, database_url, schema_name, tenant_metadata)
             values ('a', 'acme-corp', 'Acme', 'active', null, null, null, '{{}}'),
                    ('b', 'beta', 'Beta', 'active', 'database', '{url}', null, '{{}}'),
                    ('c', 'gamma', 'Gamma', 'active', 'schema', null, 'its own', '{{}}'),
                    ('d', 'delta', 'Delta', 'deleted', null, null, null, '{{}}'),
                    ('e', 'eta', 'Eta', 'ACTIVE', null, null, null, '{{}}'),
                    ('f', 'phi', 'Phi', 'ACTIVE', null, null, null, '{{}}')"
        ))
        .await;
    feeds_a_run(&fleet, "source = 'fastapi-tenancy'\nurl = '{control}'").await;
    let told = fleet.herder(&["tenants"]).await.expect(0);
    let left_out = "Left out 2 tenants, `e` among them: fastapi-tenancy has no such status as `ACTIVE` (2)";
    assert!(told.stderr.contains(left_out), "{}", told.all());
}

#[tokio::test]
async fn a_list_that_makes_no_sense_leaves_no_run() {
    let fleet = schemas().await;
    for (change, words) in [
        (
            "insert into tenants (id, schema) values ('t001', 'elsewhere')",
            "listed 2 times",
        ),
        (
            "update tenants set id = '', schema = 'x' where schema = 'elsewhere'",
            "null or empty",
        ),
        (
            "update tenants set id = 'x', schema = null where id = ''",
            "neither schema",
        ),
        (
            "update tenants set schema = 'pg_toast' where id = 'x'",
            "belongs to Postgres",
        ),
        ("delete from tenants", "no tenants"),
        ("alter table tenants drop column id", "id"),
    ] {
        fleet.tell(change).await;
        let output = fleet.herder(&["upgrade"]).await.expect(3);
        assert!(output.stderr.contains(words), "{words}: {}", output.all());
        assert_eq!(fleet.state().await, "none");
    }
}

/// What is odd about a tenant that is left out is no concern of the others.
#[tokio::test]
async fn an_odd_tenant_can_be_left_out() {
    let fleet = schemas().await;
    fleet.tell("alter table tenants rename to catalog").await;
    fleet.tell(include_str!("../fixtures/fastapi_tenancy.sql")).await;
    let rows = "insert into tenants (id, identifier, name, status, isolation_strategy, schema_name, tenant_metadata) values
        ('good', 'good', '', 'active', 'schema', 't001', '{}'),
        ('bad', 'bad', '', 'active', 'hybrid', null, '{}'), ('slug', '2fast', '', 'active', null, null, '{}')";
    fleet.tell(rows).await;
    let query = "select 'good' as id, 't001' as schema, null as isolation union all select 'bad', 't002', 'odd' \
                 union all select 'slug', '', 'schema'";
    fs::write(
        fleet.dir().join("odd.csv"),
        "id,schema,labels\ngood,t001,\nbad,t002,[\nslug,pg_x,\n",
    )
    .expect("a file");
    for source in [
        "source = 'fastapi-tenancy'\nurl = '{control}'".to_owned(),
        format!("source = 'sql'\nurl = '{{control}}'\nquery = \"{query}\""),
        "source = 'file'\npath = 'odd.csv'".to_owned(),
    ] {
        let control = fleet.cluster.url(&fleet.database("control"));
        let tenants: Table = source.replace("{control}", &control).parse().expect("TOML");
        fleet.configure(|config| {
            config.insert("tenants".into(), tenants.into());
        });
        let refused = fleet.herder(&["plan"]).await.expect(3);
        for words in [
            "2 things are wrong",
            "tenant `bad` makes no sense",
            "--exclude ID",
        ] {
            assert!(refused.stderr.contains(words), "{words}: {}", refused.all());
        }
        fleet.herder(&["plan", "--tenant", "good"]).await.expect(0);
        fleet
            .herder(&["plan", "--exclude", "bad", "--exclude", "slug"])
            .await
            .expect(0);
    }
}

//! Every kind of tenant source on a real Postgres: who is listed, where they live, and what is said when it is wrong.

use std::{collections::BTreeMap, path::Path, sync::OnceLock};

use herder::{
    config::Config,
    flow::resolve::{Resolved, resolve},
    servers::Servers,
    tenant_source::{TenantSource, build},
    throwaway::ThrowawayPostgres,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// One server for all; each test has its own databases. It ends with this process.
fn server() -> &'static ThrowawayPostgres {
    static SERVER: OnceLock<ThrowawayPostgres> = OnceLock::new();
    SERVER.get_or_init(|| ThrowawayPostgres::start().expect("a server"))
}

/// Runs statements in a database.
async fn run(database: &str, sql: &str) {
    let mut connection = PgConnection::connect(&server().url(database))
        .await
        .expect("a connection");
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    sql.execute(&mut connection).await.expect("it runs");
}

async fn create(database: &str, sql: &str) {
    run("postgres", &format!("create database {database}")).await;
    run(database, sql).await;
}

/// The source under `[tenants]`, with one server whose own database is `database`.
fn source(database: &str, tenants: &str) -> Result<(Box<dyn TenantSource>, Servers), String> {
    let url = server().url(database);
    let text = format!(
        "[control]\nurl = '{}'\n[servers.main]\nurl = '{url}'\n[runner]\nkind = 'sql'\n[tenants]\n{tenants}",
        server().url("ts_control")
    );
    let text = text.replace("URL", &url);
    let config = Config::parse(&text, Path::new("herder.toml"), Path::new("/"), &|_| None);
    let config = config.map_err(|e| e.to_string())?;
    let servers = Servers::from_config(&config).map_err(|e| e.to_string())?;
    let source = build(&config.tenants, &servers).map_err(|e| e.to_string())?;
    Ok((source, servers))
}

async fn resolved(database: &str, tenants: &str) -> Result<Resolved, String> {
    let (source, servers) = source(database, tenants)?;
    let listed = source.list().await.map_err(|e| e.to_string())?;
    resolve(listed, &servers).map_err(|e| e.to_string())
}

/// One line per job.
async fn jobs(database: &str, tenants: &str) -> Vec<String> {
    let (source, servers) = source(database, tenants).expect("a source");
    let listed = source.list().await.expect("tenants");
    let labels: BTreeMap<String, BTreeMap<String, String>> =
        listed.iter().map(|t| (t.id.clone(), t.labels.clone())).collect();
    let resolved = resolve(listed, &servers).expect("tenants");
    let line = |t: herder::domain::tenant::Tenant| {
        let own = if t.own_url { " (own url)" } else { "" };
        let members: String = t.members.iter().map(|m| format!(" +{m}")).collect();
        let labels = labels.get(&t.id).into_iter().flatten();
        let labels: String = labels.map(|(k, v)| format!(" [{k}={v}]")).collect();
        format!("{}: {}{own}{members}{labels}", t.id, t.place)
    };
    resolved.tenants.into_iter().map(line).collect()
}

#[tokio::test]
async fn a_query_may_give_ids_of_any_type_and_labels() {
    let catalog = "
        create extension hstore;
        create table t (n int, u uuid, name text, schema text, plan jsonb, h hstore, url text, password text);
        insert into t values
            (7, '00000000-0000-0000-0000-000000000007', 'it''s; \\', 'a\"; drop schema public; --', '{\"plan\": \"pro\"}',
             'k => \"v, w\", z => NULL', null, 'hunter2'),
            (8, '00000000-0000-0000-0000-000000000008', 'Ü', 'select', null, null, null, 'hunter2');";
    create("ts_sql", catalog).await;
    let query = |query: &str| format!("source = 'sql'\nurl = 'URL'\nquery = '''{query}'''");
    let place = |id: &str, labels: &str, first: bool| {
        let schema = if first {
            "a\"; drop schema public; --"
        } else {
            "select"
        };
        format!("{id}: schema `{schema}` of database `ts_sql` on `main`{labels}")
    };
    for (id, a, b) in [
        ("n", "7", "8"),
        (
            "u",
            "00000000-0000-0000-0000-000000000007",
            "00000000-0000-0000-0000-000000000008",
        ),
        ("name", "it's; \\", "Ü"),
    ] {
        let query = query(&format!(
            "select {id} as id, schema, plan as labels, password from t order by n; "
        ));
        let expected = [place(a, " [plan=pro]", true), place(b, "", false)];
        assert_eq!(jobs("ts_sql", &query).await, expected, "{id}");
        let (source, _) = source("ts_sql", &query).expect("a source");
        for (id, there) in [
            (a, true),
            (b, true),
            ("9", false),
            ("' or true --", false),
            ("07", false),
        ] {
            let found = source.find(id).await.expect("a catalog").map(|t| t.id);
            assert_eq!(found.as_deref(), there.then_some(id));
        }
    }
    let hstore = query("select n as id, schema, h as labels from t where n = 7 -- one\n ; -- only");
    assert_eq!(jobs("ts_sql", &hstore).await, [place("7", " [k=v, w]", true)]);
    // A comment behind the semicolon keeps the query out of a subquery. It is found all the same.
    let (commented, _) = source("ts_sql", &hstore).expect("a source");
    assert!(commented.find("7").await.expect("a catalog").is_some());

    for (sql, expected) in [
        (
            "select n, schema from t",
            "are wrong: the query gives no column `id`; it gives: n, schema",
        ),
        (
            "select nullif(n, 8) as id, schema from t order by n",
            "are wrong: row 2: `id` is null or empty",
        ),
        ("select '' as id", "are wrong: row 1: `id` is null or empty"),
        (
            "select n as id, n as id from t",
            "are wrong: the query gives the column `id` more than once",
        ),
        (
            "select n as id, 'a' as schema, 'b' as \"Schema\" from t",
            "are wrong: the query gives the column `schema` more than once",
        ),
        (
            "select n as id, 'x' as isolation from t order by n",
            "tenant `7` makes no sense in the tenant list: unknown isolation `x`: it is schema, database or shared",
        ),
        (
            "select n as id, '[1]'::json as labels from t order by n",
            "tenant `7` makes no sense in the tenant list: `labels` is neither a JSON object nor an hstore",
        ),
        (
            "select 'm1' as id, 'a' as schema; select 2",
            "are wrong: the query is more than one statement",
        ),
        ("select nope from t", ": column \"nope\" does not exist (42703)"),
        ("selec 1", ": syntax error at or near \"selec\" (42601)"),
        (
            "delete from t returning n as id",
            ": cannot execute DELETE in a read-only transaction (25006)",
        ),
        (
            "select n as id from t where false",
            "no tenants: the source lists none",
        ),
        (
            "select n as id, '' as schema from t where n = 7",
            "tenant `7` has schema ``: it is empty",
        ),
        (
            "select n as id from t where n = 7",
            "tenant `7` gives neither schema, database nor url",
        ),
        (
            "select 1 as id, 'a' as schema from t",
            "tenant `1` is listed 2 times",
        ),
    ] {
        let error = resolved("ts_sql", &query(sql)).await.expect_err(sql);
        assert!(error.contains(expected), "{sql}: {error}");
    }
}

#[tokio::test]
async fn names_of_columns_have_no_case_and_a_char_no_filling() {
    create("ts_lenient", "").await;
    let query = "source = 'sql'\nurl = 'URL'\nquery = '''
        select 'acme'::char(9) as \"ID\", 't_a'::char(10) as \"Schema\", null as url'''";
    let place = "acme: schema `t_a` of database `ts_lenient` on `main`";
    assert_eq!(jobs("ts_lenient", query).await, [place]);
    let (source, _) = source("ts_lenient", query).expect("a source");
    assert!(source.find("acme").await.expect("a catalog").is_some());
    assert!(source.find("acm").await.expect("a catalog").is_none());
}

#[tokio::test]
async fn a_catalog_out_of_reach_is_named_without_its_password() {
    server();
    let tenants = "source = 'sql'\nquery = 'select 1 as id'\nurl = 'postgresql://u:hunter2@127.0.0.1:1/c'";
    let error = resolved("postgres", tenants).await.expect_err("nobody listens");
    assert!(
        error.starts_with(
            "cannot read the tenants from the query on postgresql://127.0.0.1:1/c: cannot connect to 127.0.0.1:1: "
        ) && !error.contains("hunter2"),
        "{error}"
    );
    let tenants = "source = 'sql'\nquery = 'select 1 as id'\nurl = 'mysql://u:hunter2@h/c'";
    let error = resolved("postgres", tenants)
        .await
        .expect_err("it is another thing");
    assert!(
        error.starts_with("[tenants] `url` cannot be used: `mysql://`"),
        "{error}"
    );
}

#[tokio::test]
async fn schemas_are_discovered_by_pattern() {
    let schemas = r#"create schema tenant_b; create schema tenant_a; create schema "Tenant ü"; create schema herder;
        create schema apalis; create schema tenant_template; create schema ext; create extension hstore schema ext;
        create schema owned; create table owned.t ();"#;
    create("ts_schemas", schemas).await;
    let ids = async |tenants: &str| -> Vec<String> {
        let tenants = format!("source = 'schemas'\n{tenants}");
        let resolved = resolved("ts_schemas", &tenants).await.expect("tenants");
        resolved.tenants.into_iter().map(|t| t.id).collect()
    };
    assert_eq!(
        ids("").await,
        [
            "Tenant ü",
            "ext",
            "owned",
            "tenant_a",
            "tenant_b",
            "tenant_template"
        ]
    );
    assert_eq!(
        ids("pattern = 'tenant_%'\nexclude = ['*_template']\nserver = 'main'").await,
        ["tenant_a", "tenant_b"]
    );
    assert_eq!(ids("pattern = 'public'").await, ["public"]);
    let (found, servers) =
        source("ts_schemas", "source = 'schemas'\npattern = 'tenant_*'").expect("a source");
    let listed = found
        .find("tenant_a")
        .await
        .expect("a server")
        .expect("it is there");
    let tenants = resolve(vec![listed], &servers).expect("a tenant").tenants;
    assert_eq!(
        tenants[0].place.to_string(),
        "schema `tenant_a` of database `ts_schemas` on `main`"
    );
    for id in ["owned", "tenant_c", "pg_catalog"] {
        assert!(found.find(id).await.expect("a server").is_none(), "{id}");
    }
    let error = resolved("{database}", "source = 'schemas'")
        .await
        .expect_err("which?");
    assert!(
        error.contains("the url of server `main` says {database}"),
        "{error}"
    );
}

/// The name's bytes are those of the database that it was made from.
#[tokio::test]
async fn a_database_whose_name_is_not_utf_8_hides_no_other() {
    let latin = "create database ts_latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0";
    run("postgres", latin).await;
    run("ts_latin", "create database \"ts_odd_é\"").await;
    run("postgres", "create database ts_odd_a").await;
    let odd = "source = 'databases'\npattern = 'ts_odd_*'";
    assert_eq!(jobs("postgres", odd).await.len(), 1);
}

#[tokio::test]
async fn databases_are_discovered_by_pattern() {
    for statement in [
        "create database ts_control",
        "create database \"ts_db_B\"",
        "create database \"ts_db a\"",
        "create database ts_db_closed allow_connections false",
        "create database ts_db_template is_template true",
    ] {
        run("postgres", statement).await;
    }
    for database in ["postgres", "{database}"] {
        assert_eq!(
            jobs(database, "source = 'databases'\npattern = 'ts_db*'").await,
            [
                "ts_db a: database `ts_db a` on `main`",
                "ts_db_B: database `ts_db_B` on `main`",
                "ts_db_closed: database `ts_db_closed` on `main`"
            ]
        );
    }
    let (all, _) = source("postgres", "source = 'databases'").expect("a source");
    let ids: Vec<String> = all
        .list()
        .await
        .expect("a server")
        .into_iter()
        .map(|t| t.id)
        .collect();
    for absent in ["postgres", "template1", "ts_control", "ts_db_template"] {
        assert!(!ids.iter().any(|id| id == absent), "{absent} in {ids:?}");
    }
    assert_eq!(
        jobs("postgres", "source = 'databases'\npattern = 'ts_control'").await,
        ["ts_control: database `ts_control` on `main`"]
    );
}

#[tokio::test]
async fn fastapi_tenancy_is_read_as_it_stands() {
    create("ts_fastapi", include_str!("../fixtures/fastapi_tenancy.sql")).await;
    let rows = "insert into tenants (id, identifier, name, status, isolation_strategy, database_url, schema_name,
                                     tenant_metadata) values
        ('aX-_1', 'acme-corp', 'Acme', 'active', null, null, null, '{\"secret\": 1}'),
        ('b', 'beta', 'Beta', 'active', null, null, 'Own \"schema\"', '{}'),
        ('c', 'gamma', 'Gamma', 'suspended', null, null, null, '{}'),
        ('d', 'delta', 'Delta', 'active', 'database', null, null, '{}'),
        ('e', 'epsilon', 'Epsilon', 'active', 'database', 'postgresql+asyncpg://x:hunter2@other/eps', null, '{}'),
        ('f', 'zeta', 'Zeta', 'active', 'rls', null, null, '{}'),
        ('g', 'zulu', 'Zulu', 'active', 'rls', null, null, '{}'),
        ('h', 'theta', 'Theta', 'deleted', null, null, null, '{}'),
        ('i', 'iota', 'Iota', 'provisioning', null, null, null, '{}'),
        ('j', 'kappa', 'Kappa', 'ACTIVE', null, null, null, '{}')";
    run("ts_fastapi", rows).await;
    let kind = "source = 'fastapi-tenancy'\nurl = 'URL'\n";
    let labels =
        |identifier: &str, name: &str| format!(" [identifier={identifier}] [name={name}] [status=active]");
    let on = "of database `ts_fastapi` on `main`";
    assert_eq!(
        jobs("ts_fastapi", kind).await,
        [
            format!(
                "aX-_1: schema `tenant_acme_corp` {on}{}",
                labels("acme-corp", "Acme")
            ),
            format!("b: schema `Own \"schema\"` {on}{}", labels("beta", "Beta")),
            format!(
                "d: database `tenant_delta_db` on `main`{}",
                labels("delta", "Delta")
            ),
            format!(
                "e: database `eps` on `other:5432` (own url){}",
                labels("epsilon", "Epsilon")
            ),
            format!("f: schema `public` {on} +g{}", labels("zeta", "Zeta")),
        ]
    );
    let (by_id, _) = source("ts_fastapi", kind).expect("a source");
    let found = by_id.find("e").await.expect("a table").expect("it is active");
    assert_eq!(
        found.url.expect("its own").expose(),
        "postgresql+asyncpg://x:hunter2@other/eps"
    );
    assert!(by_id.find("c").await.expect("a table").is_none());

    let slugs =
        format!("{kind}id = 'identifier'\nstatuses = ['active', 'suspended']\ntable = 'public.tenants'");
    let (by_slug, _) = source("ts_fastapi", &slugs).expect("a source");
    assert_eq!(by_slug.list().await.expect("a table").len(), 7);
    assert_eq!(
        by_slug
            .find("gamma")
            .await
            .expect("a table")
            .expect("it is listed")
            .id,
        "gamma"
    );

    let hybrid =
        format!("{kind}isolation = 'hybrid'\npremium_tenants = ['b']\npremium_isolation = 'database'");
    let lines = jobs("ts_fastapi", &hybrid).await;
    let places: Vec<&str> = lines.iter().filter_map(|l| l.split(" [").next()).collect();
    assert_eq!(
        places,
        [
            "aX-_1: schema `public` of database `ts_fastapi` on `main` +f +g",
            "b: database `tenant_beta_db` on `main`",
            "d: database `tenant_delta_db` on `main`",
            "e: database `eps` on `other:5432` (own url)",
        ]
    );
    let error = resolved("ts_fastapi", &format!("{kind}table = 'nope'"))
        .await
        .expect_err("there is none");
    assert!(
        error.ends_with("relation \"nope\" does not exist (42P01)"),
        "{error}"
    );
    run(
        "ts_fastapi",
        "update tenants set database_url = 'enc::gAAAAhunter2' where id = 'e'",
    )
    .await;
    let error = resolved("ts_fastapi", kind)
        .await
        .expect_err("nobody can read it");
    assert!(
        error.contains("tenant `e` makes no sense in the tenant list: identifier `epsilon`: its `database_url` is encrypted")
            && !error.contains("hunter2"),
        "{error}"
    );
}

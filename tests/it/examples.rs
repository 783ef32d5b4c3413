//! The example projects are what the README and `herder demo` lead people to: they must hold as they are.

use std::path::Path;

use herder::throwaway::ThrowawayPostgres;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const SQL_SAAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sql-saas");

#[tokio::test]
async fn sql_saas_goes_up_and_down_and_refuses_a_duplicate_email() {
    let server = ThrowawayPostgres::start().expect("a server");
    let mut connection = PgConnection::connect(&server.url("postgres"))
        .await
        .expect("a connection");
    let mut migrations = Migrator::new(Path::new(SQL_SAAS).join("migrations"))
        .await
        .expect("the migrations");
    migrations.set_locking(false);
    run(&mut connection, "CREATE SCHEMA tenant; SET search_path = tenant").await;

    migrations.run_to(3, &mut connection).await.expect("up to 3");
    run(&mut connection, &file("seed.sql")).await;
    run(&mut connection, &file("duplicate_email.sql")).await;
    let error = migrations
        .run(&mut connection)
        .await
        .expect_err("two users with one address");
    assert!(error.to_string().contains("users_email_key"), "{error}");

    run(
        &mut connection,
        "DELETE FROM users WHERE email = 'Ada.Lovelace@Example.com'",
    )
    .await;
    migrations.run(&mut connection).await.expect("up to the last");
    migrations
        .undo(&mut connection, 0)
        .await
        .expect("down to nothing");
    let left: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'tenant'::regnamespace AND relkind = 'r'",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the tables");
    assert_eq!(left, ["_sqlx_migrations"]);
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(SQL_SAAS).join(name)).expect(name)
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .expect("the statements run");
}

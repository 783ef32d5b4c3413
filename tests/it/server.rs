//! The server that all tests of a process share. Each test makes databases of its own on it.

use std::sync::OnceLock;

use herder::throwaway::{Settings, ThrowawayPostgres};
use sqlx::{Connection, PgConnection};

/// Members of this role must give their password; everybody else is trusted.
pub(crate) const WITH_PASSWORD: &str = "with_password";

/// The server. It ends with the process.
pub(crate) async fn shared() -> &'static ThrowawayPostgres {
    static SERVER: OnceLock<ThrowawayPostgres> = OnceLock::new();
    static READY: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let start = || {
        SERVER.get_or_init(|| {
            let settings = Settings::default().parameter("max_connections", 400);
            ThrowawayPostgres::start_with(&settings).expect("a server")
        })
    };
    let server = tokio::task::spawn_blocking(start).await.expect("no panic");
    READY.get_or_init(|| ask_for_passwords(server)).await;
    server
}

async fn ask_for_passwords(server: &ThrowawayPostgres) {
    let file = server.dir().join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&file).expect("pg_hba.conf");
    let rule = format!("host all +{WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\n");
    std::fs::write(&file, rule + &rules).expect("pg_hba.conf");
    let mut admin = PgConnection::connect(&server.url("postgres"))
        .await
        .expect("a connection");
    let role = format!("create role {WITH_PASSWORD}");
    for sql in [role.as_str(), "select pg_reload_conf()"] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&mut admin)
            .await
            .expect(sql);
    }
}

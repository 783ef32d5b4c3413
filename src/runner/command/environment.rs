//! What a program is told about its tenant.

use std::ffi::OsString;

use super::template::{Placeholder, Values};
use crate::{
    database_url::DatabaseUrl,
    domain::{job::Claim, revision::Direction},
    runner::Subject,
    session::{CLIENT_CHECK, quote},
};

/// What no program needs to know, and what would lead libpq past the tenant.
pub(super) const WITHOUT: [&str; 4] = ["HERDER_CONTROL_URL", "PGHOSTADDR", "PGSERVICE", "PGOPTIONS"];

/// The settings of the program's session, as the server writes them.
pub(super) struct Session {
    pub(super) application_name: String,
    pub(super) lock_timeout: String,
    pub(super) statement_timeout: String,
}

/// What is known of the work. Nothing where only the ledger is asked for.
pub(super) struct Errand<'a> {
    pub(super) claim: &'a Claim,
    pub(super) from: Option<&'a str>,
    pub(super) to: Option<&'a str>,
}

/// A tenant, as a program sees it.
pub(super) struct Environment {
    pub(super) values: Values,
    pub(super) env: Vec<(String, OsString)>,
    /// What must not be repeated.
    pub(super) secrets: Vec<String>,
}

/// The word for "before the first revision". No empty text, which many a program takes for "the newest".
pub(super) const BASE: &str = "base";

impl Environment {
    pub(super) fn new(
        of: Subject<'_>,
        schema: Option<&str>,
        session: &Session,
        errand: Option<&Errand<'_>>,
    ) -> Self {
        let url = of.url;
        let options = options(url, schema, session);
        let full = url.for_program(&session.application_name, &options);
        let mut values = Values::from([
            (Placeholder::Tenant, of.tenant.to_owned()),
            (Placeholder::Server, of.place.server.clone()),
            (Placeholder::Schema, schema.unwrap_or_default().to_owned()),
            (Placeholder::Database, url.database()),
            (Placeholder::Host, url.host()),
            (Placeholder::Port, url.port().to_string()),
            (Placeholder::User, url.user().unwrap_or_default()),
            (Placeholder::Url, full.expose().to_owned()),
        ]);
        let password = url.password();
        let password = password.as_ref().map_or("", |p| p.expose()).to_owned();
        values.insert(Placeholder::Password, password);
        if let Some(errand) = errand {
            let revision = |r: Option<&str>| r.unwrap_or(BASE).to_owned();
            values.extend([
                (Placeholder::From, revision(errand.from)),
                (Placeholder::To, revision(errand.to)),
                (Placeholder::Direction, direction(errand.claim.direction)),
            ]);
        }
        let env = env(url, &values, session, &options);
        let mut secrets = url.secrets();
        secrets.push(full.expose().to_owned());
        Self { values, env, secrets }
    }
}

fn direction(direction: Direction) -> String {
    direction.as_str().to_owned()
}

fn env(url: &DatabaseUrl, values: &Values, session: &Session, options: &str) -> Vec<(String, OsString)> {
    let from_values = [
        ("HERDER_TENANT", Placeholder::Tenant),
        ("HERDER_SCHEMA", Placeholder::Schema),
        ("HERDER_DATABASE", Placeholder::Database),
        ("HERDER_SERVER", Placeholder::Server),
        ("HERDER_DIRECTION", Placeholder::Direction),
        ("HERDER_FROM", Placeholder::From),
        ("HERDER_TO", Placeholder::To),
        ("DATABASE_URL", Placeholder::Url),
        ("PGHOST", Placeholder::Host),
        ("PGPORT", Placeholder::Port),
        ("PGDATABASE", Placeholder::Database),
    ];
    let mut env: Vec<(String, OsString)> = from_values
        .iter()
        .filter_map(|(name, p)| Some(((*name).to_owned(), values.get(p)?.into())))
        .collect();
    let ours = [
        ("PGAPPNAME", session.application_name.as_str()),
        ("PGOPTIONS", options),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value.into())));
    // Left as they are in our own environment where the URL says nothing: Herder itself connects in the same way.
    let optional = [
        ("PGUSER", url.user()),
        ("PGPASSWORD", url.password().map(|p| p.expose().to_owned())),
        ("PGSSLMODE", url.parameter("sslmode")),
        ("PGSSLROOTCERT", url.parameter("sslrootcert")),
        ("PGSSLCERT", url.parameter("sslcert")),
        ("PGSSLKEY", url.parameter("sslkey")),
    ];
    env.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into()))),
    );
    env
}

/// The server's options for the program's session: our limits, and the tenant's schema as the only one. Those of the
/// environment and of the URL come first, as they do in Herder's own sessions, so that ours win.
fn options(url: &DatabaseUrl, schema: Option<&str>, session: &Session) -> String {
    let ambient = std::env::var("PGOPTIONS").ok();
    let mut options: Vec<String> = ambient.into_iter().chain(url.parameter("options")).collect();
    let mut set = |name: &str, value: &str| options.push(format!("-c {name}={}", escape(value)));
    set("lock_timeout", &session.lock_timeout);
    set("statement_timeout", &session.statement_timeout);
    set(
        "client_connection_check_interval",
        &format!("{}ms", CLIENT_CHECK.as_millis()),
    );
    if let Some(schema) = schema {
        set("search_path", &quote(schema));
    }
    options.join(" ")
}

/// The server cuts options at spaces, and takes any character behind a backslash as it is.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_whitespace() || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_schema_names_survive_the_options() {
        let url = DatabaseUrl::parse("postgresql://u:p@h/d?options=-c%20a.b%3D1").expect("a URL");
        let session = Session {
            application_name: "herder/x".into(),
            lock_timeout: "3s".into(),
            statement_timeout: "15min".into(),
        };
        let place = crate::domain::tenant::Place {
            server: "main".into(),
            database: "d".into(),
            schema: None,
        };
        let of = Subject {
            tenant: "acme",
            place: &place,
            url: &url,
        };
        let environment = Environment::new(of, Some("a \"b\"\\c"), &session, None);
        let options = environment.env.iter().find(|(name, _)| name == "PGOPTIONS");
        assert_eq!(
            options
                .map(|(_, value)| value.to_string_lossy().into_owned())
                .as_deref(),
            Some(
                "-c a.b=1 -c lock_timeout=3s -c statement_timeout=15min -c client_connection_check_interval=1000ms \
                 -c search_path=\"a\\ \"\"b\"\"\\\\c\""
            )
        );
        assert!(
            environment
                .env
                .iter()
                .any(|(name, value)| name == "HERDER_TENANT" && value == "acme")
        );
        assert!(!environment.env.iter().any(|(name, _)| name == "HERDER_TO"));
    }
}

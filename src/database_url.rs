//! A Postgres URL: read once, passed to every library in the form that it takes.

use std::{borrow::Cow, fmt, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use url::Url;

use crate::{scrub::passwords, secret::Secret};

mod parameters;

/// A parsed URL of a database. It prints without user and password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DatabaseUrl(Url);

/// Why a URL is none. The text never repeats the URL: a password may stand in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It cannot be parsed at all.
    #[error("not a URL ({0}); it looks like postgresql://user@host:5432/database")]
    Malformed(#[from] url::ParseError),
    /// It is one of something else.
    #[error("`{0}://` is not a Postgres URL; it looks like postgresql://user@host:5432/database")]
    Scheme(String),
    /// A password in it ends too early: what is left of it would be shown as a database.
    #[error("ambiguous: in a user or password, `/` is written %2F, `?` %3F, `#` %23 and `@` %40")]
    Separators,
    /// Which of them is the primary, only libpq would find out.
    #[error("names several hosts; give the one that takes writes, or a name that leads to it")]
    SeveralHosts,
    /// Another program would read the rest of the URL from a file.
    #[error("`{0}` is not read from a URL: {1}")]
    Elsewhere(&'static str, &'static str),
    /// A parameter looks like one that decides who answers, and is none.
    #[error("`{0}` is no parameter; did you mean `{1}`?")]
    Mistyped(String, &'static str),
    /// It names what the client library does not know.
    #[error("not usable: {0}")]
    Options(String),
}

impl DatabaseUrl {
    /// Parses a URL. SQLAlchemy's `postgresql+driver://` is understood. What it leaves out is written down in it: every
    /// program has defaults of its own, and takes them from its environment first, so that the guard and the work might be
    /// on two servers. Who comes, and how much TLS there is, is left to the environment, which all of them read alike.
    ///
    /// # Errors
    /// See [`DatabaseUrlError`].
    pub fn parse(text: &str) -> Result<Self, DatabaseUrlError> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .ok_or(url::ParseError::RelativeUrlWithoutBase)?;
        match scheme.split('+').next() {
            Some("postgres" | "postgresql") => {}
            _ => return Err(DatabaseUrlError::Scheme(scheme.to_owned())),
        }
        check_separators(rest)?;
        check_hosts(rest)?;
        let mut url = Self(Url::parse(&format!("postgresql://{}", with_host(rest)))?);
        url.check_parameters()?;
        url.spell_out();
        url.options()?;
        Ok(url)
    }

    /// Writes down host, port and database as they are taken to be.
    fn spell_out(&mut self) {
        let (host, port, database) = (self.host(), self.port(), self.database());
        let nameless = self.0.host_str().is_none_or(str::is_empty);
        if nameless && self.parameter("host").is_none() && self.parameter("hostaddr").is_none() {
            // A word that is a host to every parser.
            let _ = self.0.set_host(Some(&host));
        }
        // A URL without a host, whose parameters name one, has no place for a port.
        if self.parameter("port").is_none() && self.0.port().is_none() && self.0.set_port(Some(port)).is_err()
        {
            let pairs = self
                .0
                .query()
                .map(|query| format!("{query}&"))
                .unwrap_or_default();
            self.0.set_query(Some(&format!("{pairs}port={port}")));
        }
        if self.parameter("dbname").is_none() && self.0.path().trim_start_matches('/').is_empty() {
            self.0.set_path(&encode(&database));
        }
    }

    /// Parses a server's URL from the config, with `{database}` filled in. A URL without that word gets its
    /// database replaced where one is given.
    ///
    /// # Errors
    /// See [`DatabaseUrlError`].
    pub fn for_database(template: &Secret, database: Option<&str>) -> Result<Self, DatabaseUrlError> {
        let text = template.expose();
        if text.contains("{database}") {
            return Self::parse(&text.replace("{database}", &encode(database.unwrap_or("postgres"))));
        }
        let mut url = Self::parse(text)?;
        if let Some(database) = database {
            url.0.set_path(&encode(database));
            url.drop_dbname();
        }
        Ok(url)
    }

    /// Removes `dbname` from the parameters: it would win over the path.
    fn drop_dbname(&mut self) {
        if self.parameter("dbname").is_none() {
            return;
        }
        let kept: Vec<(String, String)> = self
            .0
            .query_pairs()
            .filter(|(k, _)| k != "dbname")
            .map(|(k, v)| (k.into_owned(), v.into_owned()))
            .collect();
        self.0.set_query(None);
        if !kept.is_empty() {
            self.0.query_pairs_mut().extend_pairs(kept);
        }
    }

    /// A parameter behind the question mark, e.g. `sslmode`.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.0
            .query_pairs()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.into_owned())
    }

    /// The host, or the folder of its Unix socket. A parameter wins, as it does in libpq and in sqlx: else a URL could
    /// lead to another server than the one whose budget it counts against.
    pub fn host(&self) -> String {
        let host = || {
            let host = self.0.host_str().filter(|h| !h.is_empty())?;
            Some(decode(host.trim_matches(['[', ']'])))
        };
        self.parameter("hostaddr")
            .or_else(|| self.parameter("host"))
            .or_else(host)
            .unwrap_or_else(|| "localhost".into())
    }

    /// The port. 5432 where the URL names none.
    pub fn port(&self) -> u16 {
        self.parameter("port")
            .and_then(|port| port.parse().ok())
            .or_else(|| self.0.port())
            .unwrap_or(5432)
    }

    /// `host:port`: what tells one server from another. An IPv6 address is in brackets, which no host is.
    pub fn address(&self) -> String {
        let (host, port) = (self.host(), self.port());
        match host.contains(':') && !host.starts_with('/') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }

    /// The database. The user's name where the URL names none, as libpq has it. A parameter `dbname` wins over the
    /// path, as it does in sqlx.
    pub fn database(&self) -> String {
        let path = Some(decode(self.0.path().trim_start_matches('/')));
        self.parameter("dbname")
            .or(path)
            .filter(|name| !name.is_empty())
            .or_else(|| self.user())
            .unwrap_or_else(|| "postgres".into())
    }

    /// The user, where the URL names one.
    pub fn user(&self) -> Option<String> {
        self.parameter("user")
            .or_else(|| (!self.0.username().is_empty()).then(|| decode(self.0.username())))
    }

    /// The password, where the URL holds one.
    pub fn password(&self) -> Option<Secret> {
        self.parameter("password")
            .or_else(|| self.0.password().map(decode))
            .map(Secret::new)
    }

    /// All that must not be repeated of it: passwords, that of a key file too, and the whole.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let mut secrets = passwords(self.0.as_str());
        secrets.push(self.0.as_str().to_owned());
        secrets
    }

    /// All of it, under another scheme, e.g. `postgresql+asyncpg`.
    pub fn with_scheme(&self, scheme: &str) -> Secret {
        Secret::new(self.0.as_str().replacen("postgresql", scheme, 1))
    }

    /// All of it for a program that connects by itself, under a name of ours and with the server's `options`
    /// (`-c name=value …`) in place of its own.
    pub fn for_program(&self, application_name: &str, options: &str) -> Secret {
        // By hand: libpq, unlike browsers, does not read `+` as a space.
        let others = self.0.query().unwrap_or_default().split('&').filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !matches!(name, "" | "options" | "application_name")
        });
        let ours = [("application_name", application_name), ("options", options)];
        let ours = ours
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)));
        let all: Vec<String> = others.map(str::to_owned).chain(ours).collect();
        let mut url = self.0.clone();
        url.set_query(Some(&all.join("&")));
        Secret::new(url.as_str())
    }

    /// All of it.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// What sqlx connects with. Statements are not logged: ours are dull, and a migration's may hold data.
    ///
    /// # Errors
    /// A parameter that sqlx cannot read.
    pub fn options(&self) -> Result<PgConnectOptions, DatabaseUrlError> {
        PgConnectOptions::from_str(self.for_sqlx().as_str())
            .map(ConnectOptions::disable_statement_logging)
            .map_err(|e| DatabaseUrlError::Options(e.to_string()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgresql://{}/{}", self.address(), self.database())
    }
}

/// Whether what stands before the host is over where it seems to be. An `@` further on belongs to a password that was
/// not encoded.
fn check_separators(rest: &str) -> Result<(), DatabaseUrlError> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let path = rest.split('?').next().unwrap_or_default();
    let early = path.contains('@') || (rest.contains('@') && !authority.contains('@'));
    match early || rest.contains('#') {
        true => Err(DatabaseUrlError::Separators),
        false => Ok(()),
    }
}

fn check_hosts(rest: &str) -> Result<(), DatabaseUrlError> {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    // A comma in the path of a socket is one.
    let several = |pair: &str| match pair.split_once('=') {
        Some(("host" | "hostaddr", value)) => !decode(value).starts_with('/') && decode(value).contains(','),
        _ => false,
    };
    match decode(host).contains(',') || query.split('&').any(several) {
        true => Err(DatabaseUrlError::SeveralHosts),
        false => Ok(()),
    }
}

/// A user without a host, `u:p@/db?host=/run/pg`, as libpq and SQLAlchemy write a Unix socket: that is a URL to them, and none
/// by the standard. The user goes to the host's side.
fn with_host(rest: &str) -> Cow<'_, str> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let Some((user, port)) = authority
        .rsplit_once('@')
        .filter(|(_, host)| host.is_empty() || host.starts_with(':'))
    else {
        return rest.into();
    };
    let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
    let names_host = |pair: &str| pair.starts_with("host=") || pair.starts_with("hostaddr=");
    if !query.split('&').any(names_host) {
        return format!("{user}@localhost{port}{behind}").into();
    }
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    let port = port.strip_prefix(':').filter(|port| !port.is_empty());
    let more = [("user", Some(user)), ("password", password), ("port", port)];
    let more = more
        .into_iter()
        .filter_map(|(name, value)| Some(format!("&{name}={}", encode(&decode(value?)))));
    format!("{path}?{query}{}", more.collect::<String>()).into()
}

pub(crate) fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// What is not written as it is. RFC 3986 needs no percent sign for the four that stay, and `set_main_option` of Alembic's
/// config, which takes `%` for its own, would choke on one in every other database's name.
pub(crate) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_decoded_and_nothing_is_shown() {
        let url = DatabaseUrl::parse("postgres+asyncpg://me:p%40ss%2F@db.example:6543/a%20b?sslmode=disable")
            .expect("a URL");
        assert_eq!(url.address(), "db.example:6543");
        assert_eq!(url.database(), "a b");
        assert_eq!(url.password(), Some(Secret::new("p@ss/")));
        assert_eq!(
            format!("{url} {url:?}"),
            "postgresql://db.example:6543/a b postgresql://db.example:6543/a b"
        );
        let other = DatabaseUrl::for_database(&Secret::new(url.expose()), Some("x/ü")).expect("a URL");
        assert_eq!(other.database(), "x/ü");
        assert_eq!(other.options().expect("options").get_database(), Some("x/ü"));
        let filled =
            DatabaseUrl::for_database(&Secret::new("postgresql://h/{database}"), Some("t 1")).expect("a URL");
        assert_eq!(filled.database(), "t 1");
        assert_eq!(
            filled.with_scheme("postgresql+psycopg2").expose(),
            "postgresql+psycopg2://h:5432/t%201"
        );
    }

    #[test]
    fn a_mistyped_parameter_that_decides_who_answers_is_refused() {
        for (query, said) in [
            (
                "sslmod=verify-full",
                "`sslmod` is no parameter; did you mean `sslmode`?",
            ),
            (
                "SSLMODE=verify-full",
                "`SSLMODE` is no parameter; did you mean `sslmode`?",
            ),
            (
                "sslrootcrt=/x",
                "`sslrootcrt` is no parameter; did you mean `sslrootcert`?",
            ),
            ("passwd=x", "`passwd` is no parameter; did you mean `password`?"),
        ] {
            let error = DatabaseUrl::parse(&format!("postgresql://h/d?{query}")).expect_err("it is mistyped");
            assert_eq!(error.to_string(), said);
        }
        // Other parameters of libpq's, and what is a driver's own.
        for query in [
            "sslcertmode=allow",
            "sslcompression=0",
            "passfile=x",
            "connect_timeout=3",
            "ssl=require",
            "foo=bar",
            "async_fallback=true",
            "command_timeout=5",
        ] {
            DatabaseUrl::parse(&format!("postgresql://h/d?{query}")).expect(query);
        }
    }

    /// Alembic's `set_main_option` chokes on a percent sign, and most names have no need of one.
    #[test]
    fn what_needs_no_percent_sign_gets_none() {
        let url = DatabaseUrl::for_database(&Secret::new("postgresql://h/x"), Some("my_app-1.0~x"));
        let url = url.expect("a URL");
        assert_eq!(url.expose(), "postgresql://h:5432/my_app-1.0~x");
        assert_eq!(url.database(), "my_app-1.0~x");
    }

    #[test]
    fn what_a_file_would_say_is_not_passed_over() {
        for query in ["service=svc", "servicefile=/f", "sslmode=disable&service=svc"] {
            let url = DatabaseUrl::parse(&format!("postgresql://h/d?{query}"));
            assert!(
                matches!(url, Err(DatabaseUrlError::Elsewhere(..))),
                "{query}: {url:?}"
            );
        }
    }

    #[test]
    fn several_hosts_are_refused() {
        for url in [
            "h1,h2:5432/db",
            "u:p,w@h1:1,h2:2/db",
            "/db?host=h1,h2",
            "/db?hostaddr=1.1.1.1%2C2.2.2.2",
        ] {
            let url = DatabaseUrl::parse(&format!("postgresql://{url}"));
            assert_eq!(url, Err(DatabaseUrlError::SeveralHosts));
        }
        for url in ["u:p,w@h/a,b", "/db?host=/run/a,b"] {
            DatabaseUrl::parse(&format!("postgresql://{url}")).expect("a URL");
        }
    }

    #[test]
    fn sockets_and_defaults_are_understood() {
        let url = DatabaseUrl::parse("postgresql:///app?host=/run/pg&port=5433").expect("a URL");
        assert_eq!(
            (url.host().as_str(), url.port(), url.database().as_str()),
            ("/run/pg", 5433, "app")
        );
        assert_eq!(
            DatabaseUrl::parse("postgresql://u@h").expect("a URL").database(),
            "u"
        );
    }

    #[test]
    fn what_a_url_leaves_out_is_the_same_to_every_program() {
        // Each program has defaults of its own, and its own variables for them: PGHOST, PGPORT, PGDATABASE.
        for (text, full) in [
            ("postgresql://u@h/d", "postgresql://u@h:5432/d"),
            ("postgresql://u@h", "postgresql://u@h:5432/u"),
            ("postgresql://h", "postgresql://h:5432/postgres"),
            ("postgresql:///d", "postgresql://localhost:5432/d"),
            ("postgresql://u:p@/d", "postgresql://u:p@localhost:5432/d"),
            ("postgresql://u@:6543/d", "postgresql://u@localhost:6543/d"),
            (
                "postgresql+psycopg://u:p%40@/d?host=/run/pg",
                "postgresql:///d?host=/run/pg&user=u&password=p%40&port=5432",
            ),
            (
                "postgresql://u@:6543/d?host=/run/pg",
                "postgresql:///d?host=/run/pg&user=u&port=6543",
            ),
            ("postgresql://h/d?port=6543", "postgresql://h/d?port=6543"),
            (
                "postgresql:///d?host=/run/pg&sslmode=disable",
                "postgresql:///d?host=/run/pg&sslmode=disable&port=5432",
            ),
            ("postgresql://h?dbname=d", "postgresql://h:5432?dbname=d"),
            ("postgresql://[::1]/d", "postgresql://[::1]:5432/d"),
        ] {
            let url = DatabaseUrl::parse(text).expect("a URL");
            assert_eq!(url.expose(), full);
            let options = url.options().expect("options");
            assert_eq!(options.get_port(), url.port());
            assert_eq!(options.get_database(), Some(&*url.database()));
            assert!(
                url.with_scheme("postgresql+asyncpg")
                    .expose()
                    .ends_with(&full[13..])
            );
        }
    }

    #[test]
    fn an_address_of_the_sixth_version_is_one() {
        let url = DatabaseUrl::parse("postgresql://u@[::1]:7830/d").expect("a URL");
        assert_eq!(
            (url.host().as_str(), url.address().as_str()),
            ("::1", "[::1]:7830")
        );
        assert_eq!(url.options().expect("options").get_host(), "::1");
        assert_eq!(url.to_string(), "postgresql://[::1]:7830/d");
    }

    #[test]
    fn a_dbname_parameter_never_leads_a_tenant_elsewhere() {
        let text = "postgresql://h/a?dbname=b&sslmode=disable";
        assert_eq!(DatabaseUrl::parse(text).expect("a URL").database(), "b");
        let url = DatabaseUrl::for_database(&Secret::new(text), Some("t1")).expect("a URL");
        assert_eq!(url.expose(), "postgresql://h:5432/t1?sslmode=disable");
        assert_eq!(url.options().expect("options").get_database(), Some("t1"));
        let url = DatabaseUrl::for_database(&Secret::new("postgresql://h?dbname=b"), Some("t1"));
        assert_eq!(url.expect("a URL").expose(), "postgresql://h:5432/t1");
    }

    #[test]
    fn a_program_gets_our_name_and_options() {
        let url =
            DatabaseUrl::parse("postgresql://u@h/d?sslmode=disable&options=-c%20a%3D1&application_name=x")
                .expect("a URL");
        let given = url.for_program("herder/1", "-c search_path=\"a\\ b\"");
        assert_eq!(
            given.expose(),
            "postgresql://u@h:5432/d?sslmode=disable&application_name=herder%2F1&options=-c%20search_path%3D%22a%5C%20b%22"
        );
    }

    #[test]
    fn a_wrong_url_is_not_repeated() {
        for text in [
            "mysql://u:hunter2@h/d",
            "u:hunter2@h/d",
            "postgresql://u:hunter2@h:port/d",
            "postgresql://u:@/hunter2@h/d",
            "postgresql://u:1/hunter2@h/d",
            "postgresql://u:1?hunter2@h/d",
            "postgresql://u:1#hunter2@h/d",
        ] {
            let error = DatabaseUrl::parse(text).expect_err("it is wrong").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

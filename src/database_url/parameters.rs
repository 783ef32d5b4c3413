//! What may stand behind a URL's question mark, and what of it sqlx is told.

use url::Url;

use super::{DatabaseUrl, DatabaseUrlError};
use crate::nearest::nearest;

/// The parameters that sqlx reads.
const KNOWN_TO_SQLX: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Parameters that decide who answers, and who may listen: one that is mistyped must not be passed over. Others that are no parameter of
/// libpq's may be a driver's own, and are.
const DECISIVE: [&str; 14] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslcertmode",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "gssencmode",
    "channel_binding",
    "require_auth",
    "password",
    "target_session_attrs",
];

/// How alike a mistyped one is.
const MISTYPED: f64 = 0.94;

/// Parameters that name a file with what the URL leaves out, and what to do in their place. Passed over, they would lead elsewhere.
const ELSEWHERE: [(&str, &str); 2] = [
    ("service", "write out host, port, database and user"),
    ("servicefile", "write out host, port, database and user"),
];

/// How much TLS there may be.
const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// The words for the file of the authorities that a server's certificate may come from.
const ROOT_CERTIFICATE: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

impl DatabaseUrl {
    /// Refuses what would lead elsewhere, or to somebody else, if it were passed over.
    pub(super) fn check_parameters(&self) -> Result<(), DatabaseUrlError> {
        for (name, instead) in ELSEWHERE {
            if self.parameter(name).is_some() {
                return Err(DatabaseUrlError::Elsewhere(name, instead));
            }
        }
        self.check_spelling()?;
        self.check_tls()
    }

    /// `?sslmod=verify-full` would connect without TLS.
    fn check_spelling(&self) -> Result<(), DatabaseUrlError> {
        for (name, _) in self.0.query_pairs() {
            if DECISIVE.contains(&&*name) || KNOWN_TO_SQLX.contains(&&*name) || name.len() < 4 {
                continue;
            }
            let lower = name.to_ascii_lowercase();
            if let Some(meant) = nearest(&lower, DECISIVE.into_iter(), MISTYPED) {
                return Err(DatabaseUrlError::Mistyped(name.escape_debug().to_string(), meant));
            }
        }
        Ok(())
    }

    /// sqlx would say of a certificate that is not there only that there is no such file.
    fn check_tls(&self) -> Result<(), DatabaseUrlError> {
        for name in ["sslmode", "ssl-mode", "ssl"] {
            let Some(mode) = self.parameter(name) else {
                continue;
            };
            if !SSL_MODES.contains(&mode.as_str()) {
                let known = SSL_MODES.join(", ");
                return Err(DatabaseUrlError::Options(format!(
                    "`{name}` is `{}`; the sslmodes are {known}",
                    mode.escape_debug()
                )));
            }
        }
        for name in ["sslrootcert", "sslcert", "sslkey"] {
            let Some(path) = self
                .parameter(name)
                .filter(|path| path != "system" && !path.starts_with("-----BEGIN"))
            else {
                continue;
            };
            if let Err(error) = std::fs::File::open(&path) {
                return Err(DatabaseUrlError::Options(format!(
                    "`{name}` names {path}, which cannot be read: {error}"
                )));
            }
        }
        Ok(())
    }

    /// The URL in sqlx's words. What it does not know is left out: it would log the value, and `sslpassword` is one of
    /// those. Two things mean what libpq means by them: `require` with a root certificate looks at the certificate, and
    /// the root certificate `system` is the well-known ones, which sqlx trusts anyway. And an IPv6 address is told by a
    /// parameter: sqlx would take the brackets around it for a part of it.
    pub(super) fn for_sqlx(&self) -> Url {
        let known = |name: &str| KNOWN_TO_SQLX.contains(&name) || name.starts_with("options[");
        let rooted = ROOT_CERTIFICATE.iter().any(|name| self.parameter(name).is_some());
        let pairs = self.0.query_pairs().filter_map(|(name, value)| {
            let name = match &*name {
                // SQLAlchemy's word for asyncpg.
                "ssl" => "sslmode",
                other => other,
            };
            match (name, &*value) {
                ("sslmode" | "ssl-mode", "require") if rooted => {
                    Some((name.to_owned(), "verify-ca".to_owned()))
                }
                (name, "system") if ROOT_CERTIFICATE.contains(&name) => None,
                (name, value) => known(name).then(|| (name.to_owned(), value.to_owned())),
            }
        });
        let mut pairs: Vec<(String, String)> = pairs.collect();
        if self.0.host_str().is_some_and(|host| host.starts_with('['))
            && !pairs.iter().any(|(name, _)| name == "host" || name == "hostaddr")
        {
            pairs.push(("host".to_owned(), self.host()));
        }
        let mut url = self.0.clone();
        url.set_query(None);
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        url
    }
}

//! Why a server lets nobody in before it has heard a single statement, and what to do about it: for each of the ways in
//! which TLS, a certificate or `pg_hba.conf` is in the way.

use std::io;

/// A server that is not to be trusted: it speaks no TLS where the URL asks for it, or its certificate is wrong. Trying
/// again does not help. Gives the reason, and what to do about it.
pub fn untrusted(error: &sqlx::Error) -> Option<(String, &'static str)> {
    let why = match error {
        sqlx::Error::Tls(error) => error.to_string(),
        // In this way come the complaints of rustls out of a handshake.
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
        _ => return None,
    };
    let hint = match () {
        () if why.contains("does not support TLS") => {
            "switch TLS on there (`ssl = on`), or ask for less by `sslmode` in the URL"
        }
        () if why.contains("UnknownIssuer") => {
            "name the authority that its certificate comes from: `sslrootcert=/path/to/ca.pem` in the URL"
        }
        () if why.contains("not valid for name") => {
            "use a host name that the certificate is for; `sslmode=verify-ca` in the URL lets any name pass"
        }
        () if why.contains("Expired") || why.contains("NotValidYet") => {
            "renew the server's certificate, or set the clock"
        }
        () => "see `sslmode`, `sslrootcert`, `sslcert` and `sslkey` in the URL, and the server's log",
    };
    Some((why, hint))
}

/// What to do about a server's refusal, by its SQLSTATE and its words. Words in another language get the general hint.
pub fn refused(sqlstate: &str, message: &str) -> Option<&'static str> {
    if !matches!(sqlstate, "28000" | "28P01") {
        return None;
    }
    Some(match () {
        () if message.contains("rejects connection") => {
            "the server's pg_hba.conf has a `reject` line for this user, database and address, perhaps only without TLS"
        }
        () if message.contains("no encryption") => {
            "the server's pg_hba.conf may want TLS: `sslmode=verify-full` in the URL, or at least `sslmode=require`"
        }
        () if message.contains("pg_hba.conf") => {
            "the server's pg_hba.conf has no line for this user, database and address: add one, or correct the URL"
        }
        () if message.contains("not permitted to log in") => "let that role log in: ALTER ROLE … LOGIN",
        () if message.contains("client certificate") || message.starts_with("certificate auth") => {
            "the server wants a certificate of this very user: `sslcert` and `sslkey` in the URL"
        }
        () => "check user and password in the URL, and that the role is still valid (VALID UNTIL)",
    })
}

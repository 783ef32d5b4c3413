//! Where a tenant of the list lives.

use crate::{
    database_url::{DatabaseUrl, DatabaseUrlError},
    domain::tenant::{Isolation, PUBLIC, Place, Tenant},
    secret::{is_secret_url, shown},
    servers::Servers,
    tenant_source::Listed,
};

/// The longest name that Postgres keeps. It cuts longer ones, and two tenants could become one.
const LONGEST_NAME: usize = 63;

/// What is wrong with one tenant. It reads on from "tenant `acme` ".
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("makes no sense in the tenant list: {0}")]
    Entry(String),
    #[error("gives neither schema, database nor url")]
    Nowhere,
    #[error("has isolation `schema`, but gives no schema")]
    NoSchema,
    #[error("has isolation `database`, but gives neither database nor url")]
    NoDatabase,
    #[error("gives no database, and the url of server `{0}` leaves it open")]
    OpenDatabase(String),
    #[error("gives no server, and the config names several: {0}")]
    WhichServer(String),
    #[error("gives neither server nor url, and the config has no [servers.NAME]")]
    NoServers,
    #[error("is on server `{0}`, which is not in the config{1}")]
    UnknownServer(String, String),
    #[error("has a url of its own that cannot be used: {0}")]
    Url(#[from] DatabaseUrlError),
    #[error("has {kind} `{name}`: {why}", name = shown(.name))]
    Name {
        kind: &'static str,
        name: String,
        why: &'static str,
    },
}

pub(super) fn isolation_of(entry: &Listed) -> Result<Isolation, ()> {
    match (entry.isolation, &entry.schema, &entry.database, &entry.url) {
        (Some(isolation), ..) => Ok(isolation),
        (None, Some(_), ..) => Ok(Isolation::Schema),
        (None, None, Some(_), _) | (None, None, None, Some(_)) => Ok(Isolation::Database),
        (None, None, None, None) => Err(()),
    }
}

/// Where an entry lives.
pub(super) fn locate(entry: Listed, servers: &Servers) -> Result<Tenant, Fault> {
    if let Some(fault) = entry.fault {
        return Err(Fault::Entry(fault));
    }
    let isolation = isolation_of(&entry).map_err(|()| Fault::Nowhere)?;
    let own_url = match &entry.url {
        Some(url) => Some(DatabaseUrl::for_database(url, entry.database.as_deref())?),
        None => None,
    };
    let server = server_of(&entry, own_url.as_ref(), servers)?;
    let schema = match isolation {
        Isolation::Schema => Some(entry.schema.ok_or(Fault::NoSchema)?),
        Isolation::Shared => Some(entry.schema.unwrap_or_else(|| PUBLIC.into())),
        Isolation::Database if entry.database.is_none() && own_url.is_none() => {
            return Err(Fault::NoDatabase);
        }
        Isolation::Database => None,
    };
    let database = match (entry.database, &own_url) {
        (Some(database), _) => database,
        (None, Some(url)) => url.database(),
        (None, None) => match servers.own_database(&server) {
            Ok(Some(database)) => database.to_owned(),
            _ => return Err(Fault::OpenDatabase(server)),
        },
    };
    check_name("database", &database)?;
    if let Some(schema) = &schema {
        check_name("schema", schema)?;
        if schema.starts_with("pg_") || schema == "information_schema" {
            return Err(Fault::Name {
                kind: "schema",
                name: schema.clone(),
                why: "it belongs to Postgres",
            });
        }
    }
    Ok(Tenant {
        id: entry.id,
        isolation,
        place: Place {
            server,
            database,
            schema,
        },
        own_url: own_url.is_some(),
        members: Vec::new(),
    })
}

/// The server that an entry names, else the one that its own URL leads to, else the only one there is.
fn server_of(entry: &Listed, own_url: Option<&DatabaseUrl>, servers: &Servers) -> Result<String, Fault> {
    let of_url = own_url.map(|url| servers.name_of(url));
    match (&entry.server, of_url) {
        (Some(name), of_url) if servers.contains(name) || of_url.as_ref() == Some(name) => Ok(name.clone()),
        (Some(name), _) => {
            let nearest = servers.suggestion(name);
            Err(Fault::UnknownServer(shown(name), nearest))
        }
        (None, Some(of_url)) => Ok(of_url),
        (None, None) => match servers.only() {
            Some(only) => Ok(only.to_owned()),
            None if servers.names().next().is_none() => Err(Fault::NoServers),
            None => Err(Fault::WhichServer(servers.names().collect::<Vec<_>>().join(", "))),
        },
    }
}

/// Quotes, semicolons, blanks, keywords and any script are fine: names are always quoted.
fn check_name(kind: &'static str, name: &str) -> Result<(), Fault> {
    let why = match name {
        "" => "it is empty",
        _ if is_secret_url(name) => "it is a URL with a password; there is `url` for that",
        // In the path of a URL they are no names, however they are written.
        "." | ".." if kind == "database" => "no URL can hold it",
        _ if name.contains('\0') => "no name holds a NUL",
        _ if name.len() > LONGEST_NAME => "it is longer than the 63 bytes that Postgres keeps of a name",
        _ => return Ok(()),
    };
    Err(Fault::Name {
        kind,
        name: name.to_owned(),
        why,
    })
}

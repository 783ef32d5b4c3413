//! The servers that tenants live on. A server is what has `max_connections`, so whatever leads to one address counts as
//! one server.

use std::collections::{BTreeMap, HashMap};

use crate::{
    config::{Config, ServerConfig},
    database_url::{DatabaseUrl, DatabaseUrlError},
    domain::{tenant::Place, wave::Amount},
    nearest::did_you_mean,
    secret::Secret,
};

/// What stands for the tenant's database in a server's URL.
const DATABASE: &str = "{database}";

/// The configured servers, checked.
#[derive(Clone, Debug)]
pub struct Servers {
    by_name: BTreeMap<String, Server>,
    name_by_address: HashMap<String, String>,
    /// Address and database of Herder's own tables, where known.
    control: Option<(String, String)>,
}

#[derive(Clone, Debug)]
struct Server {
    url: Secret,
    address: String,
    /// None where the URL leaves it open.
    database: Option<String>,
    budget: Option<Amount>,
}

/// What is wrong with a server, or with a tenant's way to it. No text holds a URL.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    /// Its URL is none.
    #[error("[servers.{server}] `url` cannot be used")]
    Url {
        /// Its name.
        server: String,
        /// Why not.
        source: DatabaseUrlError,
    },
    /// The host depends on the tenant, so it would be many servers under one budget.
    #[error(
        "[servers.{0}] `{{database}}` in `url` may stand for the database only, not in the host or the port"
    )]
    HostVaries(String),
    /// Its name could be taken for an address.
    #[error("[servers.{0}] a name with `:` in it looks like the address of another server")]
    Name(String),
    /// Two names for one server would mean two budgets.
    #[error(
        "[servers] `{first}` and `{second}` are one server, {address}: name it once, or its budget would count twice"
    )]
    SameAddress {
        /// The one name.
        first: String,
        /// The other.
        second: String,
        /// Host and port.
        address: String,
    },
    /// No server of that name is configured.
    #[error("no server `{name}` in the config{nearest}")]
    Unknown {
        /// The name.
        name: String,
        /// A suggestion, or nothing.
        nearest: String,
    },
    /// A tenant's own URL is none.
    #[error("its own url cannot be used")]
    OwnUrl(#[source] DatabaseUrlError),
    /// A tenant's own URL leads to another server than the one its job was made for, whose budget it would escape.
    #[error("its own url leads to `{now}`, but the run expects it on `{expected}`: start a new run for it")]
    Moved {
        /// Where it leads now.
        now: String,
        /// Where it led when the run was made.
        expected: String,
    },
}

impl Servers {
    /// Checks the servers of a config.
    ///
    /// # Errors
    /// A URL is wrong, or two names are one server.
    pub fn new(config: &BTreeMap<String, ServerConfig>) -> Result<Self, ServersError> {
        let mut by_name = BTreeMap::new();
        let mut name_by_address = HashMap::new();
        for (name, config) in config {
            let server = Server::new(name, config)?;
            if let Some(first) = name_by_address.insert(server.address.clone(), name.clone()) {
                return Err(ServersError::SameAddress {
                    first,
                    second: name.clone(),
                    address: server.address,
                });
            }
            by_name.insert(name.clone(), server);
        }
        Ok(Self {
            by_name,
            name_by_address,
            control: None,
        })
    }

    /// Makes them from a whole config: it also knows then which database is Herder's own, so that a tenant source can
    /// leave it out.
    ///
    /// # Errors
    /// The errors of [`Self::new`]. A wrong control URL is no business of the servers: it is left to whoever connects to it.
    pub fn from_config(config: &Config) -> Result<Self, ServersError> {
        let control = DatabaseUrl::parse(config.control.url.expose()).ok();
        Ok(Self {
            control: control.map(|url| (address_of(&url), url.database())),
            ..Self::new(&config.servers)?
        })
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The name of the server where only one is configured.
    pub fn only(&self) -> Option<&str> {
        match self.by_name.len() {
            1 => self.names().next(),
            _ => None,
        }
    }

    /// Whether a server of that name is configured.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The name of the server that a URL leads to: that in the config, else `host:port`. Names are compared, not
    /// looked up: `localhost` and `127.0.0.1` are two servers.
    pub fn name_of(&self, url: &DatabaseUrl) -> String {
        let address = address_of(url);
        self.name_by_address.get(&address).cloned().unwrap_or(address)
    }

    /// The database that a server's URL names. None where it says `{database}`.
    ///
    /// # Errors
    /// No such server.
    pub fn own_database(&self, name: &str) -> Result<Option<&str>, ServersError> {
        Ok(self.server(name)?.database.as_deref())
    }

    /// The URL of a database on a server. Without one: the server's own database, or `postgres` where its URL leaves
    /// it open.
    ///
    /// # Errors
    /// No such server.
    pub fn url(&self, name: &str, database: Option<&str>) -> Result<DatabaseUrl, ServersError> {
        DatabaseUrl::for_database(&self.server(name)?.url, database).map_err(|source| ServersError::Url {
            server: name.to_owned(),
            source,
        })
    }

    /// The URL of a tenant: its own where it has one, else that of its server.
    ///
    /// # Errors
    /// No such server, or its own URL is wrong or leads elsewhere than the place says.
    pub fn url_for(&self, place: &Place, own_url: Option<&Secret>) -> Result<DatabaseUrl, ServersError> {
        let Some(own_url) = own_url else {
            return self.url(&place.server, Some(&place.database));
        };
        let url = DatabaseUrl::for_database(own_url, Some(&place.database)).map_err(ServersError::OwnUrl)?;
        let now = self.name_of(&url);
        // A tenant may name its server *and* bring a URL with another name for the same host. What it may not do is
        // lead to a second server that has a budget of its own.
        let alias = self.contains(&place.server) && !self.contains(&now);
        if now == place.server || alias {
            return Ok(url);
        }
        Err(ServersError::Moved {
            now,
            expected: place.server.clone(),
        })
    }

    /// The budget that the config gives a server. None: the default.
    pub fn budget(&self, name: &str) -> Option<Amount> {
        self.by_name.get(name)?.budget
    }

    /// The database with Herder's own tables, where it is on that server.
    pub fn control_database(&self, name: &str) -> Option<&str> {
        let (address, database) = self.control.as_ref()?;
        (self.by_name.get(name)?.address == *address).then_some(database.as_str())
    }

    /// The server that Herder's own tables share with tenants, if there is one. This machine's names for itself are one.
    pub fn control_server(&self) -> Option<&str> {
        let (control, _) = self.control.as_ref()?;
        let same = |server: &Server| loopback(&server.address) == loopback(control);
        self.by_name
            .iter()
            .find(|(_, server)| same(server))
            .map(|(name, _)| name.as_str())
    }

    /// Host and port of a server.
    pub fn address(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(|server| server.address.as_str())
    }

    fn server(&self, name: &str) -> Result<&Server, ServersError> {
        self.by_name.get(name).ok_or_else(|| ServersError::Unknown {
            name: name.to_owned(),
            nearest: self.suggestion(name),
        })
    }

    /// The end of a sentence about a server that is not there: the nearest name, else the names there are.
    pub(crate) fn suggestion(&self, name: &str) -> String {
        let names = || self.names().take(5).collect::<Vec<_>>().join(", ");
        match did_you_mean(name, self.names()) {
            nearest if !nearest.is_empty() => nearest,
            _ if self.by_name.is_empty() => String::new(),
            _ => format!("; there are: {}", names()),
        }
    }
}

impl Server {
    fn new(name: &str, config: &ServerConfig) -> Result<Self, ServersError> {
        let url = |database: Option<&str>| {
            DatabaseUrl::for_database(&config.url, database).map_err(|source| ServersError::Url {
                server: name.to_owned(),
                source,
            })
        };
        let open = config.url.expose().contains(DATABASE);
        let own = url(None)?;
        let address = address_of(&own);
        if open && address_of(&url(Some("another"))?) != address {
            return Err(ServersError::HostVaries(name.to_owned()));
        }
        if name.contains(':') && name != address {
            return Err(ServersError::Name(name.to_owned()));
        }
        Ok(Self {
            url: config.url.clone(),
            address,
            database: (!open).then(|| own.database()),
            budget: config.budget,
        })
    }
}

/// Host and port, with the host in lower case unless it is the folder of a socket.
fn address_of(url: &DatabaseUrl) -> String {
    let address = url.address();
    if address.starts_with('/') {
        return address;
    }
    address.to_ascii_lowercase()
}

/// An address with one word for all ways to this very machine.
fn loopback(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((host, port))
            if host.starts_with('/') || ["localhost", "127.0.0.1", "[::1]"].contains(&host) =>
        {
            format!("localhost:{port}")
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[(&str, &str)]) -> Result<Servers, ServersError> {
        let config = list.iter().map(|(name, url)| {
            let config = ServerConfig {
                url: Secret::new(*url),
                budget: Some(Amount::Count(7)),
            };
            ((*name).to_owned(), config)
        });
        Servers::new(&config.collect())
    }

    fn place(server: &str, database: &str) -> Place {
        Place {
            server: server.into(),
            database: database.into(),
            schema: None,
        }
    }

    #[test]
    fn a_place_becomes_a_url() {
        let servers = servers(&[
            ("eu", "postgresql://u@EU.example/app"),
            ("us", "postgresql://u@us.example:6432/{database}"),
        ])
        .expect("they are right");
        let url = |place: &Place, own: Option<&str>| {
            servers
                .url_for(place, own.map(Secret::new).as_ref())
                .map(|u| u.to_string())
        };
        assert_eq!(servers.own_database("eu"), Ok(Some("app")));
        assert_eq!(servers.own_database("us"), Ok(None));
        assert_eq!(
            url(&place("eu", "t1"), None).as_deref(),
            Ok("postgresql://EU.example:5432/t1")
        );
        assert_eq!(
            url(&place("us", "a/b"), None).as_deref(),
            Ok("postgresql://us.example:6432/a/b")
        );
        assert_eq!(
            url(&place("eu", "t1"), Some("postgres://x@eu.Example/t1")).as_deref(),
            Ok("postgresql://eu.Example:5432/t1")
        );
        assert_eq!(
            url(&place("h:1", "t1"), Some("postgres://x@h:1/t1")).as_deref(),
            Ok("postgresql://h:1/t1")
        );
        assert_eq!(
            url(&place("eu", "t1"), Some("postgres://x@alias/t1")).as_deref(),
            Ok("postgresql://alias:5432/t1")
        );
        let moved = url(&place("eu", "t1"), Some("postgres://x@us.example:6432/t1")).expect_err("it moved");
        assert!(
            moved
                .to_string()
                .starts_with("its own url leads to `us`, but the run expects it on `eu`"),
            "{moved}"
        );
        let unknown = url(&place("ue", "t1"), None).expect_err("there is none");
        assert_eq!(
            unknown.to_string(),
            "no server `ue` in the config; there are: eu, us"
        );
        assert_eq!(servers.budget("eu"), Some(Amount::Count(7)));
        assert_eq!(servers.budget("h:1"), None);
    }

    #[test]
    fn an_own_url_is_matched_by_address() {
        let servers = servers(&[
            ("a", "postgresql://DB.example/app"),
            ("s", "postgresql:///app?host=/Run/pg"),
        ])
        .expect("they are right");
        let name = |url: &str| servers.name_of(&DatabaseUrl::parse(url).expect("a URL"));
        assert_eq!(name("postgresql+asyncpg://x:y@db.EXAMPLE:5432/other"), "a");
        assert_eq!(name("postgresql://x@db.example:5433/other"), "db.example:5433");
        assert_eq!(name("postgresql:///t?host=/Run/pg"), "s");
        assert_eq!(name("postgresql:///t?host=/run/pg"), "/run/pg:5432");
        assert_eq!(name("postgresql://Localhost/t"), "localhost:5432");
        assert_eq!(name("postgresql://127.0.0.1/t"), "127.0.0.1:5432");
    }

    #[test]
    fn wrong_servers_are_named_without_their_url() {
        let complaint = |list: &[(&str, &str)]| {
            let error = servers(list).expect_err("it is wrong");
            let source = std::error::Error::source(&error)
                .map(|s| format!(": {s}"))
                .unwrap_or_default();
            let text = format!("{error}{source} {error:?}");
            assert!(!text.contains("hunter2"), "{text}");
            format!("{error}{source}")
        };
        assert_eq!(
            complaint(&[
                ("a", "postgresql://u:hunter2@H/x"),
                ("b", "postgres://v:hunter2@h:5432/{database}")
            ]),
            "[servers] `a` and `b` are one server, h:5432: name it once, or its budget would count twice"
        );
        assert_eq!(
            complaint(&[("a", "mysql://u:hunter2@h/x")]),
            "[servers.a] `url` cannot be used: `mysql://` is not a Postgres URL; it looks like \
             postgresql://user@host:5432/database"
        );
        assert_eq!(
            complaint(&[("a", "postgresql://u:hunter2@{database}.example/{database}")]),
            "[servers.a] `{database}` in `url` may stand for the database only, not in the host or the port"
        );
        assert_eq!(
            complaint(&[("h:5432", "postgresql://u:hunter2@other/x")]),
            "[servers.h:5432] a name with `:` in it looks like the address of another server"
        );
        let shown = format!("{:?}", servers(&[("a", "postgresql://u:hunter2@h/x")]));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

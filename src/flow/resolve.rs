//! From a tenant list to the tenants of a run: which were asked for, where each of them lives, and which of them are
//! one job because they live in one place. Either all of it makes sense or there is no run.

use std::collections::{BTreeSet, HashMap, HashSet, hash_map::Entry};

use crate::{
    database_url::{DatabaseUrl, DatabaseUrlError},
    domain::{
        failure::cut,
        tenant::{Isolation, Place, Tenant},
    },
    nearest::did_you_mean,
    secret::{is_secret_url, shown},
    servers::Servers,
    tenant_source::Listed,
};

/// The most bytes of an id. Indexes of the control database hold it, whose entries end at 2,700; and people read it.
const LONGEST_ID: usize = 500;

/// How many characters of a longer one are shown.
const SHOWN_OF_ID: usize = 40;

/// How many complaints of a kind are printed. Whoever forgot a column does not want to read it 10,000 times.
const SHOWN: usize = 5;

/// The longest name that Postgres keeps. It cuts longer ones, and two tenants could become one.
const LONGEST_NAME: usize = 63;

/// The schema where unqualified names go when nobody says otherwise.
const PUBLIC: &str = "public";

/// A tenant list, made sense of.
#[derive(Debug, Default)]
pub struct Resolved {
    /// One per place, in the source's order.
    pub tenants: Vec<Tenant>,
    /// What a person should know before the run starts: whole sentences without a full stop.
    pub warnings: Vec<String>,
}

/// A part of a tenant list.
#[derive(Debug, Default)]
pub struct Selection {
    /// What was asked for, in the source's order.
    pub chosen: Vec<Listed>,
    /// All the rest.
    pub left_out: Vec<Listed>,
}

/// Why a tenant list cannot become a run. No text holds a URL.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The source lists nobody.
    #[error(
        "no tenants: the source lists none; `herder tenants` shows what it gives, and [tenants] in the config says what to list"
    )]
    Empty,
    /// The selection leaves nobody.
    #[error("no tenants: the selection leaves none of the {0} that the source lists")]
    NothingLeft(usize),
    /// An option names tenants that the source does not list.
    #[error("{option} names what the source does not list: {}", .unknown.join(", "))]
    Unknown {
        /// `--tenant` or `--exclude`.
        option: &'static str,
        /// The first few ids, each with the nearest known one.
        unknown: Vec<String>,
    },
    /// Some tenants make no sense.
    #[error("{count} {} wrong: {}", if *count == 1 { "thing is" } else { "things are" }, .first.join("; "))]
    Wrong {
        /// How many complaints there are.
        count: usize,
        /// The first few, each naming its tenant, and how many more there are.
        first: Vec<String>,
    },
}

/// What is wrong with one tenant. It reads on from "tenant `acme` ".
#[derive(Debug, thiserror::Error)]
enum Fault {
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

/// Takes the tenants that `--tenant` names (all, where it names none), less those that `--exclude` names.
///
/// # Errors
/// An id that the source does not list, or nobody is left.
pub fn select(listed: Vec<Listed>, only: &[String], exclude: &[String]) -> Result<Selection, ResolveError> {
    let total = listed.len();
    let known: HashSet<&str> = listed.iter().map(|t| t.id.as_str()).collect();
    for (option, ids) in [("--tenant", only), ("--exclude", exclude)] {
        let unknown: Vec<&String> = ids.iter().filter(|id| !known.contains(id.as_str())).collect();
        if !unknown.is_empty() {
            let name = |id: &&String| {
                let ids = listed.iter().map(|t| t.id.as_str());
                format!("`{}`{}", id.escape_debug(), did_you_mean(id, ids))
            };
            return Err(ResolveError::Unknown {
                option,
                unknown: first_few(unknown.iter().take(SHOWN).map(name).collect(), unknown.len()),
            });
        }
    }
    let only: HashSet<&str> = only.iter().map(String::as_str).collect();
    let exclude: HashSet<&str> = exclude.iter().map(String::as_str).collect();
    let (chosen, left_out): (Vec<_>, Vec<_>) = listed
        .into_iter()
        .partition(|t| (only.is_empty() || only.contains(t.id.as_str())) && !exclude.contains(t.id.as_str()));
    if chosen.is_empty() && total > 0 {
        return Err(ResolveError::NothingLeft(total));
    }
    Ok(Selection { chosen, left_out })
}

/// Finds the place of every tenant, and makes one tenant of those that share one.
///
/// # Errors
/// Anything is wrong with any of them.
pub fn resolve(listed: Vec<Listed>, servers: &Servers) -> Result<Resolved, ResolveError> {
    if listed.is_empty() {
        return Err(ResolveError::Empty);
    }
    let mut complaints = Few::default();
    check_ids(&listed, &mut complaints);
    let mut tenants = Vec::with_capacity(listed.len());
    let mut unused_schemas = Few::default();
    for entry in listed {
        if isolation_of(&entry) == Ok(Isolation::Database)
            && entry.schema.as_deref().is_some_and(|s| s != PUBLIC)
        {
            unused_schemas.push(|| format!("`{}`", entry.id.escape_debug()));
        }
        if is_secret_url(&entry.id) {
            continue;
        }
        let id = entry.id.clone();
        match locate(entry, servers) {
            Ok(tenant) => tenants.push(tenant),
            Err(fault) => complaints.push(|| format!("tenant `{}` {fault}", id.escape_debug())),
        }
    }
    if complaints.count > 0 {
        return Err(ResolveError::Wrong {
            count: complaints.count,
            first: complaints.list(),
        });
    }
    let mut warnings = Vec::new();
    if unused_schemas.count > 0 {
        warnings.push(format!(
            "the schema is not used where the isolation is `database`: {}",
            unused_schemas.list().join(", ")
        ));
    }
    let tenants = collapse(tenants, &mut warnings);
    Ok(Resolved { tenants, warnings })
}

/// [`select`], then [`resolve`]; it also warns of tenants that nobody asked for, but that live in a place that will be
/// migrated.
///
/// # Errors
/// As those two. What is wrong with a tenant that nobody asked for does not matter.
pub fn resolve_selected(
    listed: Vec<Listed>,
    servers: &Servers,
    only: &[String],
    exclude: &[String],
) -> Result<Resolved, ResolveError> {
    let Selection { chosen, left_out } = select(listed, only, exclude)?;
    let mut resolved = resolve(chosen, servers)?;
    let jobs: HashMap<_, _> = resolved.tenants.iter().map(|t| (key(&t.place), t)).collect();
    let mut along = Few::default();
    for tenant in left_out
        .into_iter()
        .filter_map(|entry| locate(entry, servers).ok())
    {
        if let Some(job) = jobs.get(&key(&tenant.place)) {
            along.push(|| {
                format!(
                    "`{}` (with `{}`)",
                    tenant.id.escape_debug(),
                    job.id.escape_debug()
                )
            });
        }
    }
    if along.count > 0 {
        resolved.warnings.push(format!(
            "not selected, but migrated as well, because they share a place with a selected tenant: {}",
            along.list().join(", ")
        ));
    }
    Ok(resolved)
}

fn check_ids(listed: &[Listed], complaints: &mut Few) {
    let mut times: HashMap<&str, usize> = HashMap::with_capacity(listed.len());
    for (row, entry) in listed.iter().enumerate() {
        let id = entry.id.as_str();
        if id.trim().is_empty() {
            complaints.push(|| format!("tenant number {} has an empty id", row + 1));
            continue;
        }
        if is_secret_url(id) {
            complaints.push(|| format!("tenant number {} has a URL with a password for an id", row + 1));
            continue;
        }
        if id.len() > LONGEST_ID {
            complaints.push(|| {
                let beginning = cut(id, SHOWN_OF_ID);
                format!(
                    "tenant `{}` has an id of {} bytes; at most {LONGEST_ID} are possible",
                    beginning.escape_debug(),
                    id.len()
                )
            });
            continue;
        }
        if id.contains(char::is_control) {
            complaints.push(|| format!("tenant `{}` has a control character in its id", id.escape_debug()));
        }
        *times.entry(id).or_default() += 1;
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for entry in listed {
        let id = entry.id.as_str();
        if let Some(&times) = times.get(id)
            && times > 1
            && seen.insert(id)
        {
            complaints.push(|| format!("tenant `{}` is listed {times} times", id.escape_debug()));
        }
    }
}

fn isolation_of(entry: &Listed) -> Result<Isolation, ()> {
    match (entry.isolation, &entry.schema, &entry.database, &entry.url) {
        (Some(isolation), ..) => Ok(isolation),
        (None, Some(_), ..) => Ok(Isolation::Schema),
        (None, None, Some(_), _) | (None, None, None, Some(_)) => Ok(Isolation::Database),
        (None, None, None, None) => Err(()),
    }
}

/// Where an entry lives.
fn locate(entry: Listed, servers: &Servers) -> Result<Tenant, Fault> {
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
        labels: entry.labels,
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

/// What two tenants have in common when they are one job. A whole database and its `public` schema are one place: the
/// ledger of both stands there.
fn key(place: &Place) -> (&str, &str, &str) {
    let schema = place.schema.as_deref().unwrap_or(PUBLIC);
    (&place.server, &place.database, schema)
}

/// Makes one tenant of those that share a place: the first, with the others as its members. That is the rule for
/// [`Isolation::Shared`]; with any other isolation it is odd, and worth a warning.
fn collapse(tenants: Vec<Tenant>, warnings: &mut Vec<String>) -> Vec<Tenant> {
    let mut job_of: HashMap<_, usize> = HashMap::with_capacity(tenants.len());
    let mut joins = Vec::with_capacity(tenants.len());
    for tenant in &tenants {
        let free = job_of.len();
        joins.push(match job_of.entry(key(&tenant.place)) {
            Entry::Occupied(job) => Some(*job.get()),
            Entry::Vacant(entry) => {
                entry.insert(free);
                None
            }
        });
    }
    let mut odd: BTreeSet<usize> = BTreeSet::new();
    let mut out: Vec<Tenant> = Vec::with_capacity(job_of.len());
    for (tenant, join) in tenants.into_iter().zip(joins) {
        let Some(job) = join else {
            out.push(tenant);
            continue;
        };
        if tenant.isolation != Isolation::Shared || out[job].isolation != Isolation::Shared {
            odd.insert(job);
        }
        out[job].members.push(tenant.id);
    }
    let mut few = Few::default();
    for job in odd {
        let tenant = &out[job];
        few.push(|| {
            let ids = std::iter::once(&tenant.id).chain(&tenant.members);
            let ids = ids
                .take(SHOWN)
                .map(|id| format!("`{}`", id.escape_debug()))
                .collect();
            let ids = first_few(ids, tenant.members.len() + 1).join(", ");
            format!(
                "{ids} share {}, which is migrated once for all of them",
                tenant.place
            )
        });
    }
    warnings.extend(few.list());
    out
}

/// The first few of many, and how many there are.
#[derive(Default)]
struct Few {
    first: Vec<String>,
    count: usize,
}

impl Few {
    fn push(&mut self, text: impl FnOnce() -> String) {
        if self.first.len() < SHOWN {
            self.first.push(text());
        }
        self.count += 1;
    }

    fn list(self) -> Vec<String> {
        first_few(self.first, self.count)
    }
}

fn first_few(mut first: Vec<String>, count: usize) -> Vec<String> {
    if count > first.len() {
        first.push(format!("and {} more", count - first.len()));
    }
    first
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{config::ServerConfig, secret::Secret};

    fn servers(list: &[(&str, &str)]) -> Servers {
        let config = list.iter().map(|(name, url)| {
            let config = ServerConfig {
                url: Secret::new(*url),
                budget: None,
            };
            ((*name).to_owned(), config)
        });
        Servers::new(&config.collect()).expect("they are right")
    }

    fn one() -> Servers {
        servers(&[("main", "postgresql://u@h/app")])
    }

    /// `id schema=x database=y …`
    fn entry(text: &str) -> Listed {
        let mut words = text.split_whitespace();
        let mut entry = Listed {
            id: words.next().unwrap_or_default().into(),
            ..Listed::default()
        };
        for (field, value) in words.filter_map(|w| w.split_once('=')) {
            entry.set(field, value.into()).expect("a field");
        }
        entry
    }

    fn entries(list: &[&str]) -> Vec<Listed> {
        list.iter().map(|t| entry(t)).collect()
    }

    #[test]
    fn an_id_that_no_index_holds_is_refused_by_its_beginning() {
        let fits = "ä".repeat(250);
        resolve(entries(&[&format!("{fits} schema=a")]), &one()).expect("it fits");
        let error = resolve(entries(&[&format!("{fits}x schema=a")]), &one()).expect_err("it is too long");
        let beginning = "ä".repeat(40);
        assert!(
            error
                .to_string()
                .contains(&format!("tenant `{beginning}…` has an id of 501 bytes")),
            "{error}"
        );
    }

    fn place_of(text: &str, servers: &Servers) -> String {
        match resolve(entries(&[text]), servers) {
            Ok(resolved) => {
                let tenant = &resolved.tenants[0];
                format!("{}: {}", tenant.isolation, tenant.place)
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_given_tells_the_isolation_and_the_place() {
        let servers = one();
        for (text, expected) in [
            ("t schema=s", "schema: schema `s` of database `app` on `main`"),
            (
                "t schema=s database=d",
                "schema: schema `s` of database `d` on `main`",
            ),
            ("t database=d", "database: database `d` on `main`"),
            (
                "t url=postgresql://x@H:5432/d",
                "database: database `d` on `main`",
            ),
            ("t url=postgresql://x@g/d", "database: database `d` on `g:5432`"),
            (
                "t url=postgresql://x@g/d schema=s",
                "schema: schema `s` of database `d` on `g:5432`",
            ),
            (
                "t url=postgresql://x@g/d server=main",
                "database: database `d` on `main`",
            ),
            (
                "t url=postgresql://x@g/d server=g:5432",
                "database: database `d` on `g:5432`",
            ),
            (
                "t url=postgresql://x@g/{database} database=d",
                "database: database `d` on `g:5432`",
            ),
            (
                "t isolation=rls",
                "shared: schema `public` of database `app` on `main`",
            ),
            (
                "t isolation=shared schema=s",
                "shared: schema `s` of database `app` on `main`",
            ),
            (
                "t isolation=database database=d schema=s",
                "database: database `d` on `main`",
            ),
        ] {
            assert_eq!(place_of(text, &servers), expected, "{text}");
        }
    }

    #[test]
    fn faults_name_the_tenant_and_what_to_do() {
        let two = servers(&[
            ("eu", "postgresql://u@eu/app"),
            ("us", "postgresql://u@us/{database}"),
        ]);
        for (text, expected) in [
            ("t server=eu", "gives neither schema, database nor url"),
            (
                "t schema=s",
                "gives no server, and the config names several: eu, us",
            ),
            (
                "t schema=s server=uss",
                "is on server `uss`, which is not in the config; did you mean `us`?",
            ),
            (
                "t schema=s server=us",
                "gives no database, and the url of server `us` leaves it open",
            ),
            (
                "t isolation=schema database=d server=us",
                "has isolation `schema`, but gives no schema",
            ),
            (
                "t isolation=database schema=d server=us",
                "has isolation `database`, but gives neither database nor url",
            ),
            (
                "t url=enc::gAAAhunter2",
                "has a url of its own that cannot be used: not a URL (relative URL without a base); it looks like \
                 postgresql://user@host:5432/database",
            ),
        ] {
            assert_eq!(
                place_of(text, &two),
                format!("1 thing is wrong: tenant `t` {expected}"),
                "{text}"
            );
        }
        assert_eq!(
            place_of("t schema=s", &servers(&[])),
            "1 thing is wrong: tenant `t` gives neither server nor url, and the config has no [servers.NAME]"
        );
    }

    #[test]
    fn odd_names_pass_and_impossible_ones_do_not() {
        let servers = one();
        let schema = |name: &str| {
            let listed = Listed {
                id: "t".into(),
                schema: Some(name.into()),
                ..Listed::default()
            };
            match resolve(vec![listed], &servers) {
                Ok(r) => r.tenants[0].place.schema.clone().expect("a schema"),
                Err(error) => error.to_string().replace("1 thing is wrong: tenant `t` ", ""),
            }
        };
        let longest = "ü".repeat(31);
        for name in [
            r#"a"; drop schema public; --"#,
            "select",
            "Müller & Söhne",
            "t\n",
            " ",
            "PG_x",
            "public",
            &longest,
        ] {
            assert_eq!(schema(name), name);
        }
        assert_eq!(schema(""), "has schema ``: it is empty");
        assert_eq!(schema("a\0b"), "has schema `a\\0b`: no name holds a NUL");
        assert_eq!(
            schema("pg_toast"),
            "has schema `pg_toast`: it belongs to Postgres"
        );
        assert_eq!(
            schema("information_schema"),
            "has schema `information_schema`: it belongs to Postgres"
        );
        let long = "ü".repeat(32);
        assert_eq!(
            schema(&long),
            format!("has schema `{long}`: it is longer than the 63 bytes that Postgres keeps of a name")
        );
    }

    #[test]
    fn all_that_is_wrong_is_reported_together() {
        let mut list = entries(&["a schema=s", "a schema=t", "b", "c schema=pg_x", "a schema=u"]);
        list.push(Listed::default());
        list.extend((0..10).map(|i| entry(&format!("n{i}"))));
        let error = resolve(list, &one()).expect_err("it is wrong");
        assert_eq!(
            error.to_string(),
            "15 things are wrong: tenant number 6 has an empty id; tenant `a` is listed 3 times; tenant `b` gives \
             neither schema, database nor url; tenant `c` has schema `pg_x`: it belongs to Postgres; tenant `` gives \
             neither schema, database nor url; and 10 more"
        );
        let error = resolve(Vec::new(), &one()).expect_err("nobody is there");
        assert!(error.to_string().starts_with("no tenants: "), "{error}");
        let error = resolve(entries(&["a\u{7}b schema=s"]), &one()).expect_err("it rings");
        assert_eq!(
            error.to_string(),
            "1 thing is wrong: tenant `a\\u{7}b` has a control character in its id"
        );
    }

    #[test]
    fn tenants_of_one_place_are_one_job() {
        let list = entries(&[
            "a isolation=rls",
            "x schema=s",
            "b isolation=rls",
            "c isolation=rls",
        ]);
        let resolved = resolve(list, &one()).expect("it is right");
        assert_eq!(resolved.warnings, Vec::<String>::new());
        assert_eq!(resolved.tenants.len(), 2);
        assert_eq!(
            (resolved.tenants[0].id.as_str(), &resolved.tenants[0].members),
            ("a", &vec!["b".into(), "c".into()])
        );

        let list = entries(&[
            "a database=d",
            "b schema=public database=d",
            "c schema=s",
            "d schema=s",
        ]);
        let resolved = resolve(list, &one()).expect("it is right");
        assert_eq!(resolved.tenants.len(), 2);
        assert_eq!(resolved.tenants[0].members, ["b"]);
        assert_eq!(
            resolved.warnings,
            [
                "`a`, `b` share database `d` on `main`, which is migrated once for all of them",
                "`c`, `d` share schema `s` of database `app` on `main`, which is migrated once for all of them",
            ]
        );
    }

    #[test]
    fn a_selection_is_exact() {
        let list = || {
            entries(&[
                "acme schema=a",
                "beta schema=b",
                "gamma schema=g",
                "delta schema=b",
                "odd",
            ])
        };
        let ids = |only: &[&str], exclude: &[&str]| {
            let own = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
            resolve_selected(list(), &one(), &own(only), &own(exclude))
                .map_err(|e| e.to_string())
                .map(|r| {
                    let ids: Vec<String> = r.tenants.into_iter().map(|t| t.id).collect();
                    (ids.join(" "), r.warnings)
                })
        };
        assert_eq!(ids(&["gamma", "acme"], &[]), Ok(("acme gamma".into(), vec![])));
        let along = "not selected, but migrated as well, because they share a place with a selected tenant: `delta` (with `beta`)";
        assert_eq!(
            ids(&[], &["odd", "delta"]),
            Ok(("acme beta gamma".into(), vec![along.into()]))
        );
        assert_eq!(
            ids(&["acmee", "zzz"], &[]),
            Err("--tenant names what the source does not list: `acmee`; did you mean `acme`?, `zzz`".into())
        );
        assert_eq!(
            ids(&[], &["Beta"]),
            Err("--exclude names what the source does not list: `Beta`; did you mean `beta`?".into())
        );
        assert_eq!(
            ids(&["acme"], &["acme"]),
            Err("no tenants: the selection leaves none of the 5 that the source lists".into())
        );
    }

    #[test]
    fn a_hundred_thousand_tenants_are_no_effort() {
        let own = |i: usize| Listed {
            id: format!("t{i}"),
            url: Some(Secret::new(format!("postgresql://u:p@h{}/d{i}", i % 10))),
            ..Listed::default()
        };
        let schema = |i: usize| entry(&format!("s{i} schema=tenant_{i}"));
        let list: Vec<Listed> = (0..50_000).map(schema).chain((0..50_000).map(own)).collect();
        let start = Instant::now();
        let resolved = resolve(list, &one()).expect("it is right");
        assert_eq!(resolved.tenants.len(), 100_000);
        // A debug build on a busy machine takes a second. This is about the square that takes minutes.
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}

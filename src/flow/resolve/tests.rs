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

/// `id schema=x database=y label.plan=z …`
fn entry(text: &str) -> Listed {
    let mut words = text.split_whitespace();
    let mut entry = Listed {
        id: words.next().unwrap_or_default().into(),
        ..Listed::default()
    };
    for (field, value) in words.filter_map(|w| w.split_once('=')) {
        match field.strip_prefix("label.") {
            Some(name) => {
                entry.labels.insert(name.into(), value.into());
            }
            None => assert!(entry.set(field, value.into()).expect("a value"), "{field}"),
        }
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
        let wanted = Wanted {
            only: own(only),
            exclude: own(exclude),
            labels: Vec::new(),
        };
        resolve_selected(list(), &one(), &wanted)
            .map_err(|e| e.to_string())
            .map(|r| {
                let ids: Vec<String> = r.tenants.into_iter().map(|t| t.id).collect();
                (ids.join(" "), r.warnings)
            })
    };
    assert_eq!(ids(&["gamma", "acme"], &[]), Ok(("acme gamma".into(), vec![])));
    let along = "not selected, but migrated as well, because they share a place with a selected tenant: `delta` (with `beta`)";
    assert_eq!(ids(&["beta"], &[]), Ok(("beta".into(), vec![along.into()])));
    assert_eq!(
        ids(&[], &["odd", "delta"]),
        Err(
            "--exclude cannot leave out `delta`: it shares its place with `beta`, and is migrated with it"
                .into()
        )
    );
    assert_eq!(
        ids(&[], &["odd", "delta", "beta"]),
        Ok(("acme gamma".into(), vec![]))
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
fn labels_select_those_who_have_all_of_them() {
    let list = || {
        entries(&[
            "acme schema=a label.plan=pro label.region=eu",
            "beta schema=b label.plan=free label.region=eu",
            "gamma schema=g label.plan=pro",
            "delta schema=d",
        ])
    };
    let ids = |labels: &[&str], exclude: &[&str]| {
        let wanted = Wanted {
            exclude: exclude.iter().map(|id| (*id).to_owned()).collect(),
            labels: labels.iter().map(|l| l.parse().expect("a label")).collect(),
            ..Wanted::default()
        };
        let resolved = resolve_selected(list(), &one(), &wanted).map_err(|e| e.to_string())?;
        let ids: Vec<String> = resolved.tenants.into_iter().map(|t| t.id).collect();
        Ok::<_, String>(ids.join(" "))
    };
    assert_eq!(ids(&["plan=pro"], &[]), Ok("acme gamma".into()));
    assert_eq!(ids(&["plan=pro", "region=eu"], &[]), Ok("acme".into()));
    assert_eq!(ids(&["plan"], &["beta"]), Ok("acme gamma".into()));
    for (labels, error) in [
        (&["plan=prp"][..], "no tenant has the label `plan=prp`"),
        (
            &["plan=free", "plam=free"],
            "no tenant has the label `plam=free`; did you mean `plan`?",
        ),
        (
            &["plan=free", "plan=pro"],
            "no tenants: the selection leaves none of the 4 that the source lists",
        ),
    ] {
        assert_eq!(ids(labels, &[]), Err(error.into()));
    }
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

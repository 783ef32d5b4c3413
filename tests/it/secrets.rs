//! No password ever shows, wherever one looks: streams, logs, tables, metrics, reports, and the arguments and environments
//! of processes.

mod safe;

use futures_util::StreamExt;

use self::safe::{Findings, Safe, in_url, password};
use crate::fleet::{Setup, Tenant, Tool, steps, tell};

/// Three tenants of the server's, and three with URLs of their own, two of which are wrong.
async fn with_password(tool: Tool) -> Safe {
    let [first, second] = steps(2).try_into().expect("two");
    // A migration may say anything, and a server repeats it. In hex, so that the migration itself holds no secret.
    let says: String = password("server")
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let fails = format!(
        "do $$ begin if to_regclass('broken') is not null then \
         raise exception using message = 'it is broken: ' || convert_from(decode('{says}', 'hex'), 'UTF8'); end if; end $$"
    );
    let setup = Setup::schemas(3).migrations(tool, vec![first, second.gated().then(&fails)]);
    let mut safe = Safe::new(setup).await;
    tell(&safe.home, "create table t003.broken ()").await;
    let home = safe.cluster.url(&safe.database("home"));
    let secret =
        |password: &str| home.replace("postgres@", &format!("{}:{password}@", safe.database("server")));
    let among_parameters = home.replace("postgres@", "");
    let among_parameters = format!(
        "{among_parameters}?user={}&password={}",
        safe.database("server"),
        in_url("server")
    );
    safe.fleet.tenants = vec![
        Tenant {
            url: Some(secret(&in_url("server"))),
            ..Tenant::schema("own url", "own")
        },
        Tenant {
            url: Some(among_parameters),
            ..Tenant::schema("password among the parameters", "parameters")
        },
        Tenant {
            url: Some(secret(&in_url("server")).replace("_home", "_nowhere")),
            ..Tenant::schema("no database", "nowhere")
        },
        Tenant {
            url: Some(secret(&in_url("wrong"))),
            ..Tenant::schema("wrong password", "wrong")
        },
    ];
    safe.populate().await;
    safe
}

/// Everything that can be asked of a run that is over.
const AFTERWARDS: [&[&str]; 14] = [
    &["status"],
    &["status", "--failed"],
    &["status", "--output-format", "json"],
    &["status", "--failed", "--output-format", "json", "-vvv"],
    &["report"],
    &["report", "--output-format", "json"],
    &["report", "--output-format", "junit"],
    &["report", "--output-format", "markdown"],
    &["report", "--output-format", "csv"],
    &["runs"],
    &["runs", "--output-format", "json"],
    &["watch"],
    &["watch", "--output-format", "json"],
    &["tenants", "--revisions", "--output-format", "json", "-vvv"],
];

async fn no_secret_shows(tool: Tool) {
    let safe = with_password(tool).await;
    let mut found = Findings::default();
    let gate = safe.close_gate().await;
    let worker = safe.worker(&["--listen", "127.0.0.1:0"]);
    for args in [
        &["setup", "-vvv"][..],
        &["check"],
        &["check", "--output-format", "json"],
        &["tenants", "--revisions"],
        &["tenants", "--revisions", "--output-format", "json"],
        &["plan"],
        &["plan", "--output-format", "json"],
        &["upgrade", "-vvv", "--log-format", "json"],
    ] {
        let code = found.herder(&safe, args).await;
        assert!(
            [Some(0), Some(7)].contains(&code),
            "{args:?} ended with {code:?}: {:?}",
            found.0.last()
        );
    }
    safe.wait_at_gate(5).await;
    let strangers = found.processes();
    // There are five programs; and where plans are applied, none at all.
    assert!(tool == Tool::Sql || strangers >= 5, "{strangers}");
    found.tables(&safe).await;
    gate.open().await;
    assert_eq!(safe.over().await, "failed", "{}", worker.log());
    assert_eq!(
        (safe.count("succeeded").await, safe.count("failed").await),
        (4, 3),
        "{}",
        worker.log()
    );
    for args in AFTERWARDS {
        found.herder(&safe, args).await;
    }
    for args in [
        &["retry", "--wait", "-vv"][..],
        &["retry", "--local", "2", "-vvv"],
        &[
            "downgrade",
            "--to",
            "base",
            "--tenant",
            "t001",
            "--yes",
            "--local",
            "1",
            "-vvv",
        ],
        &["upgrade", "--tenant", "t001", "--output-format", "json"],
        &["pause"],
        &["resume", "-vvv"],
        &["cancel", "--yes"],
    ] {
        found.herder(&safe, args).await;
    }
    found.add("metrics", worker.get("/metrics").await.1);
    found.tables(&safe).await;
    found.add("the worker's log", worker.log());
    // Somebody looked at all of it, and not at nothing.
    assert!(worker.log().contains("TRACE"));
    assert!(
        found
            .0
            .iter()
            .any(|(place, text)| place == "ps" && text.contains("herder-worker"))
    );
    found.assert_no_secret();
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn no_secret_shows_with_sql() {
    no_secret_shows(Tool::Sql).await;
}

#[tokio::test]
async fn no_secret_shows_with_alembic() {
    no_secret_shows(Tool::Alembic).await;
}

#[tokio::test]
async fn no_secret_shows_with_a_command() {
    no_secret_shows(Tool::Command).await;
}

/// A migration that goes wrong: how, what it does, and what becomes of the tool.
const WRONG: [(&str, Option<&str>, bool); 3] = [
    ("a syntax error", Some("selec 1"), false),
    ("a statement timeout", Some("select pg_sleep(600)"), false),
    ("a tool that dies", None, true),
];

async fn no_secret_shows_of_a_failure(tool: Tool) {
    for (what, sql, dies) in WRONG {
        if dies && tool == Tool::Sql {
            continue;
        }
        let [first, second] = steps(2).try_into().expect("two");
        let second = sql.map_or(second.clone(), |sql| second.then(sql));
        let setup = Setup::schemas(1)
            .migrations(tool, vec![first, second])
            .set("limits.max_attempts", 1)
            .set("limits.statement_timeout", "3s");
        let safe = Safe::new(setup).await;
        if dies {
            let (file, text) = match tool {
                Tool::Alembic => ("project/env.py", "import os\nos.kill(os.getpid(), 9)\n"),
                _ => ("project/migrate.sh", "kill -9 $$\n"),
            };
            std::fs::write(safe.dir().join(file), text).expect(file);
        }
        let mut found = Findings::default();
        let code = found.herder(&safe, &["upgrade", "--local", "1", "-vvv"]).await;
        assert_eq!(code, Some(4), "{what}: {:?}", found.0);
        for args in AFTERWARDS {
            found.herder(&safe, args).await;
        }
        found.tables(&safe).await;
        found.assert_no_secret();
    }
}

#[tokio::test]
async fn no_secret_shows_of_a_failure_with_sql() {
    no_secret_shows_of_a_failure(Tool::Sql).await;
}

#[tokio::test]
async fn no_secret_shows_of_a_failure_with_alembic() {
    no_secret_shows_of_a_failure(Tool::Alembic).await;
}

#[tokio::test]
async fn no_secret_shows_of_a_failure_with_a_command() {
    no_secret_shows_of_a_failure(Tool::Command).await;
}

/// What is wrong with a URL, and how a right one is made so.
type Mistake = (&'static str, fn(&str) -> String);

/// What can be wrong with a URL, or with where it stands in the config.
const MISTAKES: [Mistake; 11] = [
    ("nothing", |url| url.to_owned()),
    ("the password", |url| url.replace("hunter2", "hunter2-wrong")),
    ("the host", |url| url.replace("127.0.0.1", "no-such-host.invalid")),
    ("the port", |url| {
        format!("{}:1/x", &url[..url.rfind(':').expect("a port")])
    }),
    ("no port", |url| {
        format!("{}:port/x", &url[..url.rfind(':').expect("a port")])
    }),
    ("the scheme", |url| url.replace("postgresql", "mysql")),
    ("no scheme", |url| url.replace("postgresql://", "")),
    ("half a password", |url| {
        url.replace("%20", "@").replace("%2F", "/")
    }),
    ("a bad escape", |url| url.replace("%20", "%zz")),
    ("parameters that nobody knows", |url| {
        format!("{url}?sslpassword=hunter2-key&sslmode=sometimes&tr0ub4dor=hunter2")
    }),
    ("parameters of libpq", |url| {
        format!("{url}?sslpassword=hunter2-key&passfile=hunter2&connect_timeout=10&keepalives=1")
    }),
];

/// In place of a section's own lines, where `URL` is one with a password.
const MISPLACED: [&str; 8] = [
    "control = 'URL'",
    "servers = 'URL'",
    "[servers]\nmain = 'URL'",
    "[servers.main]\nurl = 'URL'\nbudget = 'URL'",
    "[servers.main]\nurl = ['URL']",
    "[limits]\nlock_timeout = 'URL'",
    "[limits]\nmax_attempts = 'URL'",
    "[control]\nurl = 'URL\n",
];

#[tokio::test]
async fn no_secret_shows_wherever_a_url_is_wrong() {
    let safe = Safe::new(Setup::schemas(1)).await;
    let good = std::fs::read_to_string(safe.dir().join("herder.toml")).expect("herder.toml");
    let good: toml::Table = good.parse().expect("TOML");
    let home = safe.cluster.url(&safe.database("home"));
    let mut configs: Vec<(String, String)> = Vec::new();
    for (of, path) in [
        ("control", &["control"][..]),
        ("catalog", &["tenants"]),
        ("server", &["servers", "main"]),
    ] {
        let url = match of {
            "server" => home.clone(),
            _ => safe.cluster.url(&safe.database("control")),
        };
        let url = url.replace("postgres@", &format!("{}:{}@", safe.database(of), in_url(of)));
        for (what, mistake) in MISTAKES {
            let mut config = good.clone();
            let table = path.iter().fold(&mut config, |table, name| {
                table[*name].as_table_mut().expect("a table")
            });
            table.insert("url".into(), mistake(&url).into());
            configs.push((format!("{of}: {what}"), toml::to_string(&config).expect("TOML")));
        }
    }
    let url = home.replace("postgres@", &format!("x:{}@", in_url("server")));
    for misplaced in MISPLACED {
        let mut config = good.clone();
        for section in ["control", "servers", "limits"] {
            if misplaced.contains(section) {
                config.remove(section);
            }
        }
        let lines = misplaced.replace("URL", &url);
        let rest = toml::to_string(&config).expect("TOML");
        // A bare key must come before all sections.
        let text = format!(
            "{}\n{rest}\n{}",
            if lines.starts_with('[') { "" } else { &lines },
            if lines.starts_with('[') { &lines } else { "" }
        );
        configs.push((misplaced.to_owned(), text));
    }
    let asked = configs.iter().enumerate().map(async |(n, (what, text))| {
        let name = format!("{n}.toml");
        std::fs::write(safe.dir().join(&name), text).expect("a config");
        let mut found = Findings::default();
        for args in [
            &["check"][..],
            &["runs"],
            &["tenants", "--revisions"],
            &["plan"],
            &["setup"],
        ] {
            let args = [&["-vvv", "--config", &name], args].concat();
            let code = found.herder(&safe, &args).await;
            let right = what.ends_with(": nothing") || what.ends_with("of libpq");
            assert!(!right || code == Some(0), "{what}: {:?}", found.0.last());
            assert!(
                matches!(code, Some(0 | 3 | 7)),
                "{what}: {code:?} {:?}",
                found.0.last()
            );
        }
        if what.starts_with("control: ") && !what.contains("nothing") && !what.contains("libpq") {
            let mut worker = safe.worker(&["--config", &name]);
            assert_eq!(worker.end().await.code(), Some(3), "{what}: {}", worker.log());
            found.add(format!("the worker's log: {what}"), worker.log());
        }
        found
    });
    // Side by side, but not all at once: they would keep each other from connecting in time.
    let mut asked = futures_util::stream::iter(asked).buffer_unordered(4);
    while let Some(found) = asked.next().await {
        found.assert_no_secret();
    }
}

/// Lists of tenants with a URL that is none, or where none belongs.
const LISTS: [(&str, &str); 8] = [
    ("a.csv", "id,schema,url\na,a,mysql://u:SECRET@h/d\n"),
    ("b.csv", "id,schema,url\npostgresql://u:SECRET@h/d,a\n"),
    ("a.json", r#"[{"id": "a", "url": ["postgresql://u:SECRET@h/d"]}]"#),
    ("b.json", r#"["postgresql://u:SECRET@h/d"]"#),
    (
        "c.json",
        r#"[{"id": "a", "url": "postgresql://u:SECRET@h/d" "x"}]"#,
    ),
    ("a.yaml", "- postgresql://u:SECRET@h/d\n- id: a\n"),
    ("b.yaml", "- {id: a, url: 'postgresql://u:SECRET@h/d}\n"),
    (
        "a.toml",
        "[[tenants]]\nid = 'a'\nurl = \"postgresql://u:SECRET@h/d'\n",
    ),
];

#[tokio::test]
async fn no_secret_shows_wherever_a_tenant_list_is_wrong() {
    let safe = Safe::new(Setup::schemas(1)).await;
    let mut sources: Vec<String> = Vec::new();
    for (name, text) in LISTS {
        std::fs::write(safe.dir().join(name), text.replace("SECRET", &in_url("list"))).expect(name);
        sources.push(format!("source = 'file'\npath = '{name}'"));
    }
    let secret = in_url("list").replace('\'', "''");
    for column in ["id", "isolation", "server", "database", "labels"] {
        let query = format!("select 'a' as id, 'postgresql://u:{secret}@h/d' as {column}");
        let query = query.replace("'a' as id, ", if column == "id" { "" } else { "'a' as id, " });
        sources.push(format!(
            "source = 'sql'\nurl = '${{CATALOG_URL}}'\nquery = \"\"\"{query}\"\"\""
        ));
    }
    safe.tell("alter table tenants rename to catalog").await;
    safe.tell(include_str!("../fixtures/fastapi_tenancy.sql")).await;
    for (id, strategy, url) in [
        ("a", "database", "mysql"),
        ("b", "database", "postgresql+asyncpg"),
        ("c", "odd", "postgresql"),
    ] {
        safe.tell(&format!(
            "insert into tenants values ('{id}', '{id}', '{id}', 'active', '{strategy}', '{url}://u:{secret}@no-such-host.invalid/d', null, '{{}}')"
        ))
        .await;
    }
    sources.push("source = 'fastapi-tenancy'\nurl = '${CATALOG_URL}'".into());
    let mut found = Findings::default();
    for source in sources {
        let tenants: toml::Table = source.parse().expect("TOML");
        safe.configure(|config| {
            config.insert("tenants".into(), tenants.into());
        });
        for args in [
            &["check"][..],
            &["tenants", "--revisions", "-vvv"],
            &["plan"],
            &["upgrade"],
        ] {
            let code = found.herder(&safe, args).await;
            assert!(
                matches!(code, Some(3 | 7)),
                "{source}: {code:?} {:?}",
                found.0.last()
            );
        }
    }
    safe.tell("delete from tenants where id in ('a', 'c')").await;
    for args in [&["tenants", "--revisions", "-vvv"][..], &["plan", "-vvv"]] {
        found.herder(&safe, args).await;
    }
    found.tables(&safe).await;
    found.assert_no_secret();
}

#[tokio::test]
async fn a_tool_that_tells_all_tells_no_secret() {
    let safe = with_password(Tool::Command).await;
    safe.configure(|config| {
        let runner = config["runner"].as_table_mut().expect("[runner]");
        let tells = [
            "sh",
            "-c",
            "env; echo \"$DATABASE_URL\" >&2; echo \"pw $PGPASSWORD\"; exit 1",
        ];
        runner.insert("command".into(), tells.map(str::to_owned).to_vec().into());
    });
    let mut found = Findings::default();
    assert_eq!(
        found.herder(&safe, &["upgrade", "--local", "2", "-vvv"]).await,
        Some(4)
    );
    found.herder(&safe, &["status", "--failed"]).await;
    found.tables(&safe).await;
    assert!(found.0.iter().any(|(_, text)| text.contains("***")));
    found.assert_no_secret();

    let safe = with_password(Tool::Alembic).await;
    let env = safe.dir().join("project/env.py");
    let text = std::fs::read_to_string(&env).expect("env.py");
    let tells = "raise RuntimeError(str(_args()) + context.config.get_main_option('sqlalchemy.url'))";
    std::fs::write(&env, text.replace("asyncio.run(run_online())", tells)).expect("env.py");
    let mut found = Findings::default();
    assert_eq!(
        found.herder(&safe, &["upgrade", "--local", "2", "-vvv"]).await,
        Some(4)
    );
    found.herder(&safe, &["status", "--failed"]).await;
    found.tables(&safe).await;
    assert!(found.0.iter().any(|(_, text)| text.contains("RuntimeError")));
    found.assert_no_secret();
}

/// A forgotten `echo`, say.
#[tokio::test]
async fn a_tool_that_tells_a_secret_for_a_revision_tells_nobody() {
    let safe = with_password(Tool::Command).await;
    let mut found = Findings::default();
    for what in ["$DATABASE_URL", "pw $PGPASSWORD"] {
        safe.configure(|config| {
            let runner = config["runner"].as_table_mut().expect("[runner]");
            let tells = ["sh".to_owned(), "-c".into(), format!("echo \"{what}\"")];
            runner.insert("current_command".into(), tells.to_vec().into());
        });
        assert_eq!(
            found.herder(&safe, &["upgrade", "--local", "2", "-vvv"]).await,
            Some(4),
            "{:?}",
            found.0.last()
        );
        for args in AFTERWARDS {
            found.herder(&safe, args).await;
        }
    }
    found.tables(&safe).await;
    assert!(
        found
            .0
            .iter()
            .any(|(_, text)| text.contains("a text with a password in it"))
    );
    found.assert_no_secret();
}

/// Who may read the metrics may not learn who the customers are.
#[tokio::test]
async fn metrics_reveal_no_tenant() {
    let [first, second] = steps(2).try_into().expect("two");
    let fails = "do $$ begin if to_regclass('broken') is not null then raise 'it is broken'; end if; end $$";
    let steps = vec![first, second.then(fails).gated()];
    let tenant = |n: u32| Tenant::schema(&format!("customer-{n}"), &format!("schema_of_{n}"));
    let mut fleet = Setup::new((1..6).map(tenant).collect())
        .migrations(Tool::Sql, steps)
        .start()
        .await;
    tell(&fleet.home, "create table schema_of_1.broken ()").await;
    let database = fleet.database("house_of_6");
    fleet.cluster.create(&database).await;
    fleet.tenants.push(Tenant {
        id: "customer-6".into(),
        database: Some(database),
        ..Tenant::default()
    });
    // Another name for the same server, so one that the config does not name.
    let home = fleet.cluster.url(&fleet.database("home"));
    fleet.tenants.push(Tenant {
        url: Some(home.replace("127.0.0.1", "localhost")),
        ..Tenant::schema("customer-7", "schema_of_7")
    });
    fleet.tell("delete from tenants").await;
    fleet.populate().await;
    let gate = fleet.close_gate_of("schema_of_2").await;
    let worker = fleet.worker(&["--listen", "127.0.0.1:0"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("all but one are settled", async || {
            fleet.count("succeeded").await == 5 && fleet.count("failed").await == 1
        })
        .await;
    let mut pages = vec![worker.get("/metrics").await.1];
    gate.open().await;
    assert_eq!(fleet.over().await, "failed");
    pages.extend([
        worker.get("/metrics").await.1,
        worker.get("/readyz").await.1,
        worker.get("/livez").await.1,
    ]);
    assert!(pages[1].contains("herder_job_attempts_total"), "{}", pages[1]);
    for page in pages {
        for word in ["customer", "schema_of", "house_of", &fleet.database("")] {
            let shown = page.lines().find(|line| line.contains(word));
            assert_eq!(shown, None, "{word}");
        }
    }
    assert_eq!(worker.drain().await, Some(0));
}

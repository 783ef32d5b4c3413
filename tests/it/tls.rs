//! TLS to Postgres, by each `sslmode`, with certificates that the test makes: on a server that talks to nobody without.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use herder::domain::revision::Direction;
use herder::runner::alembic::{Launch, Migration, Project, WarmError, WarmProcess};
use herder::throwaway::Settings;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::fleet::{Cluster, Fleet, Setup, Tool, steps, tell};

/// Who gets in by their certificate only.
const CERTIFIED: &str = "certified";

/// A server with TLS, and the files that a client needs.
struct Tls {
    cluster: Arc<Cluster>,
    files: tempfile::TempDir,
}

/// An authority, and its certificate.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self(Issuer::new(params, key), certificate)
    }

    /// A certificate and its key, for a host or a person.
    fn certify(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
    // Both the server and libpq refuse a key that others may read.
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("permissions");
}

impl Tls {
    async fn start() -> Self {
        let cluster = Cluster::own(Settings::default()).await;
        let (ours, other) = (Authority::new("ours"), Authority::new("another"));
        let data = cluster.server().dir().join("data");
        let owner = fs::metadata(&data).expect("the server's folder");
        // For a name, and not for an address.
        let (certificate, key) = ours.certify("the server", &["localhost"]);
        for (name, text) in [
            ("server.crt", &certificate),
            ("server.key", &key),
            ("ca.crt", &ours.1),
        ] {
            let path = data.join(name);
            write(&path, text);
            chown(path, Some(owner.uid()), Some(owner.gid())).expect("the server's file");
        }
        let mut settings = fs::read_to_string(data.join("postgresql.conf")).expect("postgresql.conf");
        settings +=
            "\nssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.crt'\n";
        fs::write(data.join("postgresql.conf"), settings).expect("postgresql.conf");
        let rules =
            format!("hostssl all {CERTIFIED} 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 trust\n");
        fs::write(data.join("pg_hba.conf"), rules).expect("pg_hba.conf");
        cluster.server().restart().expect("the server again");

        let files = tempfile::tempdir().expect("a folder");
        let (certificate, key) = ours.certify(CERTIFIED, &[]);
        for (name, text) in [
            ("ca.pem", &ours.1),
            ("other.pem", &other.1),
            ("client.pem", &certificate),
            ("client.key", &key),
        ] {
            write(&files.path().join(name), text);
        }
        Self { cluster, files }
    }

    /// A fleet whose control database, catalog and server are all here.
    async fn fleet(&self, tool: Tool) -> Fleet {
        let [first, second] = steps(2).try_into().expect("two");
        let seen =
            "insert into effects (step) select 'tls ' || ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let steps = vec![first, second.then(seen)];
        let setup = Setup::schemas(2).on(&self.cluster).control_on(&self.cluster);
        let fleet = setup.migrations(tool, steps).start().await;
        let role = format!("create role {CERTIFIED} login superuser");
        tell(
            &fleet.home,
            &format!("do $$ begin {role}; exception when duplicate_object then end $$"),
        )
        .await;
        fleet
    }

    /// `user@host` and parameters, with the names of our files in full.
    fn url(&self, database: &str, user_at_host: &str, parameters: &str) -> String {
        let folder = self.files.path().display().to_string();
        let parameters = parameters.replace("cert=", &format!("cert={folder}/"));
        let parameters = parameters.replace(&format!("{folder}/system"), "system");
        let parameters = parameters.replace("key=", &format!("key={folder}/"));
        let port = self.cluster.server().port();
        format!("postgresql://{user_at_host}:{port}/{database}?{parameters}")
    }

    /// Leads a value of the config there.
    fn lead(&self, fleet: &Fleet, path: &[&str], database: &str, user_at_host: &str, parameters: &str) {
        let url = self.url(&fleet.database(database), user_at_host, parameters);
        fleet.configure(|config| {
            let (key, tables) = path.split_last().expect("a path");
            let table = tables.iter().fold(config, |table, name| {
                table[*name].as_table_mut().expect("a table")
            });
            table.insert((*key).to_owned(), url.into());
        });
    }

    fn lead_all(&self, fleet: &Fleet, user_at_host: &str, parameters: &str) {
        self.lead(fleet, &["control", "url"], "control", user_at_host, parameters);
        self.lead(fleet, &["tenants", "url"], "control", user_at_host, parameters);
        self.lead(
            fleet,
            &["servers", "main", "url"],
            "home",
            user_at_host,
            parameters,
        );
    }
}

const FULL: &str = "sslmode=verify-full&sslrootcert=ca.pem";

/// Its own certificate as well.
const MUTUAL: &str = "sslmode=verify-full&sslrootcert=ca.pem&sslcert=client.pem&sslkey=client.key";

const OVER_TLS: [&str; 3] = ["up 20250101", "up 20250102", "tls true"];

#[tokio::test]
async fn a_fleet_is_migrated_over_tls_with_certificates_of_both_sides() {
    let tls = Tls::start().await;
    for tool in [Tool::Sql, Tool::Command] {
        let fleet = tls.fleet(tool).await;
        tls.lead_all(&fleet, &format!("{CERTIFIED}@localhost"), MUTUAL);
        let worker = fleet.worker(&[]);
        fleet.herder(&["upgrade", "--wait"]).await.expect(0);
        fleet.assert_effects(&OVER_TLS).await;
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test]
async fn alembic_connects_over_tls_with_each_of_its_drivers() {
    let tls = Tls::start().await;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alembic-saas");
    for (driver, env) in [
        ("postgresql+asyncpg", "env_schema"),
        ("postgresql+psycopg", "env_schema"),
        ("postgresql+psycopg2", "env_sync"),
    ] {
        let fleet = tls.fleet(Tool::Alembic).await;
        fs::copy(
            examples.join(env).join("env.py"),
            fleet.dir().join("project/env.py"),
        )
        .expect("env.py");
        fleet.configure(|config| {
            let runner = config["runner"].as_table_mut().expect("[runner]");
            runner.insert("url_scheme".into(), driver.into());
        });
        tls.lead_all(&fleet, &format!("{CERTIFIED}@localhost"), MUTUAL);
        fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
        fleet.assert_effects(&OVER_TLS).await;
        alembic_itself_looks_at_the_certificate(&tls, &fleet, driver).await;
    }
}

/// Without Herder's own connection, which looks first.
async fn alembic_itself_looks_at_the_certificate(tls: &Tls, fleet: &Fleet, driver: &str) {
    let project = Project::new(fleet.dir().join("project/alembic.ini"));
    let launch = Launch {
        python: crate::venv::python(),
        env_remove: Vec::new(),
    };
    let mut process = WarmProcess::spawn(&launch).await.expect("Alembic");
    let settings = [("lock_timeout", "3s")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (host, parameters, complaint) in [
        ("postgres@localhost", FULL, None),
        (
            "postgres@localhost",
            "sslmode=verify-full&sslrootcert=other.pem",
            Some("verify failed"),
        ),
        ("postgres@127.0.0.1", FULL, Some("127.0.0.1")),
        ("postgres@127.0.0.1", "sslmode=verify-ca&sslrootcert=ca.pem", None),
    ] {
        let url = tls.url(&fleet.database("home"), host, parameters);
        let migration = Migration {
            url: &url,
            scheme: Some(driver),
            schema: Some("t001"),
            direction: Direction::Upgrade,
            target: "20250102",
            application_name: "herder/test",
            settings: &settings.clone().into(),
        };
        let migrated = tokio::time::timeout(Duration::from_secs(60), process.migrate(&project, &migration));
        match (migrated.await.expect("an answer"), complaint) {
            (Ok(_), None) => {}
            (Err(WarmError::Tool(error)), Some(complaint))
                if error.message.to_lowercase().contains(complaint) => {}
            (answer, _) => panic!("{driver} {host} {parameters}: {answer:?}"),
        }
    }
    drop(process);
}

#[tokio::test]
async fn each_sslmode_lets_in_whom_it_should() {
    let tls = Tls::start().await;
    let fleet = tls.fleet(Tool::Sql).await;
    let (name, address) = ("postgres@localhost", "postgres@127.0.0.1");
    let certified = format!("{CERTIFIED}@localhost");
    for (host, parameters, complaint) in [
        (
            address,
            "sslmode=disable",
            Some(("no encryption", "sslmode=verify-full")),
        ),
        (address, "sslmode=prefer", None),
        (address, "sslmode=require", None),
        (address, "sslmode=verify-ca&sslrootcert=ca.pem", None),
        (
            address,
            FULL,
            Some(("not valid for name \"127.0.0.1\"", "use a host name")),
        ),
        (name, FULL, None),
        (
            name,
            "sslmode=verify-full&sslrootcert=other.pem",
            Some(("UnknownIssuer", "sslrootcert=")),
        ),
        (
            name,
            "sslmode=verify-ca&sslrootcert=other.pem",
            Some(("UnknownIssuer", "sslrootcert=")),
        ),
        (name, "sslmode=verify-ca", Some(("UnknownIssuer", "sslrootcert="))),
        (
            name,
            "sslmode=verify-full&sslrootcert=system",
            Some(("UnknownIssuer", "sslrootcert=")),
        ),
        // As libpq has it: who names an authority wants it to be looked at.
        (
            address,
            "sslmode=require&sslrootcert=other.pem",
            Some(("UnknownIssuer", "sslrootcert=")),
        ),
        (address, "sslmode=require&sslrootcert=ca.pem", None),
        // As asyncpg's users write it.
        (
            address,
            "ssl=disable",
            Some(("no encryption", "sslmode=verify-full")),
        ),
        (
            address,
            "sslmode=verify-everything",
            Some(("verify-everything", "sslmode")),
        ),
        (
            name,
            "sslmode=verify-full&sslrootcert=absent.pem",
            Some(("absent.pem, which cannot be read", "")),
        ),
        (certified.as_str(), FULL, Some(("client certificate", "sslcert"))),
        (certified.as_str(), MUTUAL, None),
    ] {
        let case = format!("{host} {parameters}");
        // The control database, the tenant list, and the server: each of them on its own.
        tls.lead_all(&fleet, name, FULL);
        tls.lead(&fleet, &["control", "url"], "control", host, parameters);
        let runs = fleet.herder(&["runs"]).await;
        tls.lead_all(&fleet, name, FULL);
        tls.lead(&fleet, &["tenants", "url"], "control", host, parameters);
        let tenants = fleet.herder(&["tenants"]).await;
        tls.lead_all(&fleet, name, FULL);
        tls.lead(&fleet, &["servers", "main", "url"], "home", host, parameters);
        let check = fleet.herder(&["check"]).await;
        match complaint {
            None => {
                assert_eq!(
                    (runs.code, tenants.code),
                    (Some(0), Some(0)),
                    "{case}: {runs:?} {tenants:?}"
                );
                assert_eq!(check.code, Some(0), "{case}: {check:?}");
            }
            Some((why, hint)) => {
                for output in [&runs, &tenants, &check] {
                    let all = output.all();
                    assert!(all.contains(why) && all.contains(hint), "{case}: {all}");
                }
                assert_eq!(
                    (runs.code, tenants.code),
                    (Some(3), Some(3)),
                    "{case}: {runs:?} {tenants:?}"
                );
                assert!(matches!(check.code, Some(3 | 7)), "{case}: {check:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_not_trusted_fails_its_tenants_at_once_and_untouched() {
    let tls = Tls::start().await;
    let fleet = tls.fleet(Tool::Sql).await;
    tls.lead_all(&fleet, "postgres@localhost", FULL);
    let wrong = "sslmode=verify-full&sslrootcert=other.pem";
    tls.lead(
        &fleet,
        &["servers", "main", "url"],
        "home",
        "postgres@localhost",
        wrong,
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let job = fleet.job("t001").await;
    assert_eq!(
        (&job["error"]["reason"], &job["attempts"]),
        (&"untrusted_server".into(), &1.into()),
        "{job:#}"
    );
    fleet.assert_effects(&[]).await;
    // Mended, it goes on.
    tls.lead_all(&fleet, "postgres@localhost", FULL);
    fleet.herder(&["retry", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&OVER_TLS).await;
}

//! Every refusal with its hint, in one snapshot.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
};

use herder::throwaway::ThrowawayPostgres;

use crate::fleet::{Fleet, command};

#[test]
fn every_refusal_says_what_to_do_next() {
    let server = ThrowawayPostgres::start().expect("a server");
    let fleet = Fleet::bare(&server);
    let mut said = String::new();
    let mut try_it = |title: &str, args: &[&str]| {
        let ran = fleet.herder(args);
        let text = ran
            .stderr
            // Linux and macOS number this one differently.
            .replace(" (os error 61)", " (os error 111)")
            .replace(&server.port().to_string(), "PORT")
            .replace(&fleet.dir.path().display().to_string(), "DIR");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        let _ = writeln!(
            said,
            "# {title}\n$ herder {}\n{text}[{}]\n",
            args.join(" "),
            ran.code.unwrap_or(-1)
        );
    };
    try_it("not set up", &["runs"]);
    fleet.herder(&["setup"]).ok();
    try_it("no run", &["status"]);
    try_it("a run that is none", &["status", "xyz"]);
    try_it("an unknown run", &["watch", "abc"]);
    try_it("no migrations", &["upgrade"]);
    fleet.migration(1, "create table a (x int)", "drop table a");
    try_it("no tenants", &["upgrade"]);
    fleet.tenants("create schema t_a");
    try_it("an unknown revision", &["upgrade", "--to", "7"]);
    try_it("an unknown revision below", &["downgrade", "--to", "7", "--yes"]);
    try_it("an unknown tenant", &["upgrade", "--tenant", "t_b"]);
    try_it("nobody left", &["upgrade", "--exclude", "t_a"]);
    try_it("the wrong way", &["upgrade", "--to", "-1"]);
    try_it("nobody to ask", &["downgrade", "--to", "base"]);
    try_it("no config", &["--config", "other.toml", "runs"]);
    try_it("a folder for a config", &["--config", ".", "runs"]);
    try_it("a config that is there", &["init"]);
    try_it("a role that is not there", &["setup", "--grant", "no \"body"]);
    fleet.config("[limits2]");
    try_it("an unknown section", &["runs"]);
    fleet.config("attempts = 3");
    try_it("an unknown key", &["runs"]);
    for (title, url) in [
        ("a missing variable", "${HERDER_TEST_IS_NOT_SET}".to_owned()),
        ("no URL", "hunter2@nowhere".to_owned()),
        ("another kind of URL", "mysql://u:hunter2@h/x".to_owned()),
        ("no such database", server.url("nowhere")),
        ("nobody there", "postgresql://u:hunter2@127.0.0.1:1/x".to_owned()),
        ("a wrong password", with_password(&server)),
        ("an unknown sslmode", server.url("x?sslmode=verify")),
        (
            "no certificate",
            server.url("x?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"),
        ),
        ("no TLS there", server.url("postgres?sslmode=verify-full")),
    ] {
        let config = std::fs::read_to_string(fleet.path("herder.toml")).expect("the config");
        let config: Vec<String> = config
            .lines()
            .filter(|line| !line.contains("attempts"))
            .map(str::to_owned)
            .collect();
        let start = config
            .iter()
            .position(|line| line.contains("[control]"))
            .expect("a section");
        let mut config = config;
        config[start + 1] = format!("url = \"{url}\"");
        std::fs::write(fleet.path("herder.toml"), config.join("\n")).expect("a config");
        try_it(title, &["runs"]);
    }
    fleet.config("");
    let config = std::fs::read_to_string(fleet.path("herder.toml")).expect("the config");
    let config = config
        .replace("[control]\n", "")
        .replacen("url = ", "control = ", 1);
    std::fs::write(fleet.path("herder.toml"), config).expect("a config");
    try_it("a URL for a section", &["runs"]);
    assert!(!said.contains("hunter2"), "{said}");
    insta::assert_snapshot!(said);
}

/// A proxy whose database is away: it takes each connection and breaks it off. That is another pipe than standard output.
#[test]
fn a_control_database_that_hangs_up_is_no_success() {
    let server = ThrowawayPostgres::start().expect("a server");
    let fleet = Fleet::bare(&server);
    let socket = fleet.path(".s.PGSQL.5432");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a guest");
            // "No TLS here", and "come in, I am ready". Whatever is said then, nobody listens.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"N");
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
        }
    });
    let config = std::fs::read_to_string(fleet.path("herder.toml")).expect("the config");
    let url = format!("postgresql://u:hunter2@/x?host={}", fleet.dir.path().display());
    let (before, rest) = config.split_once("url = \"").expect("a URL");
    let (_, after) = rest.split_once('"').expect("its end");
    let config = format!("{before}url = \"{url}\"{after}");
    std::fs::write(fleet.path("herder.toml"), config).expect("a config");
    for args in [&["runs"][..], &["upgrade", "--wait"], &["setup"], &["check"]] {
        let ran = fleet.herder(args).code(3);
        assert!(
            ran.stderr.contains("error:") && !ran.stderr.contains("hunter2"),
            "{ran:?}"
        );
    }
}

/// The URL of a user that the server asks for a password, with a wrong one.
fn with_password(server: &ThrowawayPostgres) -> String {
    let rules = server.dir().join("data/pg_hba.conf");
    let text = std::fs::read_to_string(&rules).expect("pg_hba.conf");
    let rule = "host all careful 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&rules, format!("{rule}{text}")).expect("pg_hba.conf");
    server.restart().expect("the server again");
    format!(
        "postgresql://careful:hunter2@127.0.0.1:{}/postgres",
        server.port()
    )
}

#[test]
fn init_never_overwrites() {
    let dir = tempfile::tempdir().expect("a folder");
    let init = |args: &[&str]| {
        let output = command(dir.path(), args).output().expect("herder runs");
        output.status.code()
    };
    assert_eq!(init(&["init"]), Some(0));
    let written = std::fs::read_to_string(dir.path().join("herder.toml")).expect("a config");
    assert_eq!(written, herder::config::TEMPLATE);
    std::fs::write(dir.path().join("herder.toml"), "mine").expect("a file");
    assert_eq!(init(&["init"]), Some(2));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("herder.toml")).expect("a file"),
        "mine"
    );
    assert_eq!(init(&["init", "--force"]), Some(0));
    assert_eq!(init(&["init", "nowhere/herder.toml"]), Some(2));
}

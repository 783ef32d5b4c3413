//! What a pipeline sees: reports, annotations, the last line, and an end where nothing moves.

use crate::fleet::Fleet;

/// Three tenants, of which one cannot have revision 3.
fn with_failure() -> Fleet {
    let fleet = Fleet::new(&["a", "b", "c"]);
    fleet.migration(3, "create table c (x int)", "drop table c");
    fleet.tenants("create table t_b.c (y int)");
    fleet
}

#[test]
fn the_last_line_names_the_failures_and_the_way_on() {
    let fleet = with_failure();
    let ran = fleet.herder(&["upgrade", "--local", "2"]).code(4);
    let id = ran.id();
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert_eq!(
        last.trim(),
        format!(
            "Failed 1 tenant: t_b; next: `herder retry {} --local 2`",
            &id[..8]
        )
    );
    assert!(!ran.stderr.contains("::error"), "{ran:?}");
}

#[test]
fn github_is_told_without_being_asked() {
    let fleet = with_failure();
    let summary = fleet.path("summary.md");
    let output = fleet
        .command(&["upgrade", "--local", "2"])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .expect("herder runs");
    assert_eq!(output.status.code(), Some(4));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let annotations: Vec<&str> = stderr.lines().filter(|l| l.starts_with("::error ")).collect();
    assert_eq!(annotations.len(), 1, "{stderr}");
    assert!(
        annotations[0]
            .starts_with("::error title=Failed to migrate tenant t_b::3: relation \"c\" already exists"),
        "{stderr}"
    );
    assert!(
        stderr.lines().last().is_some_and(|l| l.contains("t_b")),
        "{stderr}"
    );
    let summary = std::fs::read_to_string(summary).expect("a summary");
    assert!(summary.contains("3 tenants: 2 migrated, 1 failed"), "{summary}");
    assert!(summary.contains("| t\\_b |"), "{summary}");
}

#[test]
fn a_report_comes_in_the_formats_of_others() {
    let fleet = with_failure();
    fleet.herder(&["upgrade", "--local", "2"]).code(4);
    let report = |format| fleet.herder(&["report", "--format", format]).ok().stdout;
    let junit = report("junit");
    assert!(
        junit.contains("tests=\"3\" failures=\"1\" skipped=\"0\""),
        "{junit}"
    );
    assert!(junit.contains("<failure type=\"sql_error\""), "{junit}");
    let csv = report("csv");
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(
        csv.lines()
            .any(|l| l.starts_with("t_b,main,") && l.contains(",failed,")),
        "{csv}"
    );
    let markdown = report("markdown");
    assert!(markdown.contains("### ❌ Herder: upgrade to head"), "{markdown}");
    assert!(report("text").contains("1 failed"));
    assert!(report("json").contains("\"failures\":[{"));
}

#[test]
fn nobody_waits_for_ever_where_nothing_moves() {
    let fleet = Fleet::new(&["a"]);
    // No worker is there to do it.
    let ran = fleet
        .herder(&["upgrade", "--wait", "--stall-timeout", "1s"])
        .code(8)
        .says("no tenant was settled for 1s");
    assert!(
        ran.stderr.contains(&format!("herder watch {}", &ran.id()[..8])),
        "{ran:?}"
    );
    // The run is as it was.
    fleet
        .herder(&["resume", "--local", "1", "--stall-timeout", "10min"])
        .ok();
}

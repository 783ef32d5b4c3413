//! Deliveries that make no sense, and a job that kills whoever takes it: the others go on.

use std::os::unix::process::ExitStatusExt;

use crate::fleet::{Setup, Tool, steps};

#[tokio::test]
async fn a_poisoned_delivery_stops_nobody() {
    let fleet = Setup::schemas(6).migrations(Tool::Sql, steps(2)).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    // Deliveries that belong to nothing: with an odd id, of a job that never was, of another application, garbage.
    fleet
        .tell(
            r#"insert into apalis.jobs (id, job, job_type, status, run_at) values
                ('01ARZ3NDEKTSV4RRFFQ69G5FAV', '{"job": 1}', 'herder', 'Pending', now() - interval '1 day'),
                ('not an id at all', '\x00ff00ff', 'herder', 'Pending', now() - interval '1 day'),
                (lpad(to_hex(987654321), 26, '0'), '{"job": 987654321}', 'herder', 'Pending', now() - interval '1 day'),
                ('01ARZ3NDEKTSV4RRFFQ69G5FAW', '{"mail": "to"}', 'mail::Send', 'Pending', now() - interval '1 day'),
                ('01ARZ3NDEKTSV4RRFFQ69G5FAX', '', 'herder', 'Running', now() - interval '1 day');"#,
        )
        .await;
    // What stands in our own deliveries is no truth either: garbage, nothing, another job's number, and one is gone.
    for change in [
        r#"update apalis.jobs set job = '\x00ff' where id = (select lpad(to_hex(min(id)), 26, '0') from herder.job)"#,
        r#"update apalis.jobs set job = '{"job": 1}', metadata = null
           where id = (select lpad(to_hex(min(id) + 1), 26, '0') from herder.job)"#,
        "update apalis.jobs set job_type = 'mail::Send', attempts = 99, max_attempts = 1
         where id = (select lpad(to_hex(min(id) + 2), 26, '0') from herder.job)",
        "delete from apalis.jobs where id = (select lpad(to_hex(min(id) + 3), 26, '0') from herder.job)",
        "update apalis.jobs set status = 'Done' where id = (select lpad(to_hex(min(id) + 4), 26, '0') from herder.job)",
    ] {
        fleet.tell(change).await;
    }
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    let strangers = "select count(*) from apalis.jobs where status = 'Pending'";
    assert_eq!(fleet.ask::<i64>(strangers).await, 4, "strangers are left alone");
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_job_that_kills_its_worker_is_parked() {
    // The parent of a command is its worker.
    let deadly = "[ \"$HERDER_TENANT\" != t002 ] || { kill -9 $PPID; exit; }; exec sh migrate.sh";
    let fleet = Setup::schemas(4)
        .migrations(Tool::Command, steps(2))
        .set("runner.command", vec!["sh", "-c", deadly])
        .set("limits.max_starts", 3)
        .start()
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let mut deaths = 0;
    loop {
        let mut worker = fleet.worker(&["--concurrency", "1"]);
        tokio::select! {
            status = worker.end() => assert_eq!(status.signal(), Some(9), "{}", worker.log()),
            _ = fleet.over() => {
                assert_eq!(worker.drain().await, Some(0));
                break;
            }
        }
        deaths += 1;
    }
    assert_eq!(
        (fleet.state().await.as_str(), deaths),
        ("failed", 3),
        "{}",
        fleet.last_seen().await
    );
    let job = fleet.job("t002").await;
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["error"]["reason"], "parked", "{job:#}");
    let message = job["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("3 times"), "{job:#}");
    assert_eq!(fleet.count("succeeded").await, 3);
    for tenant in &fleet.tenants {
        let expected: &[&str] = if tenant.id == "t002" {
            &[]
        } else {
            &["up 20250101", "up 20250102"]
        };
        assert_eq!(fleet.effects(tenant).await, expected);
    }
}

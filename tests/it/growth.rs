//! What a tenant costs the control database does not grow with the fleet.

use crate::fleet::{Setup, Tool, steps};

/// Before the first run the server knows its tables as empty ones, and plans for that.
#[tokio::test]
async fn what_a_tenant_costs_does_not_grow_with_the_fleet() {
    const TENANTS: i64 = 600;
    let fleet = Setup::schemas(TENANTS as usize)
        .migrations(Tool::Sql, steps(1))
        .start()
        .await;
    fleet.tell("analyze").await;
    let worker = fleet.worker(&["--concurrency", "4"]);
    let polled = "select calls > 20 from (select sum(idx_scan) as calls from pg_stat_user_tables
                  where schemaname = 'herder' and relname = 'worker') beats";
    fleet
        .wait_until("it has asked for jobs more than once", async || {
            fleet.ask::<Option<bool>>(polled).await == Some(true)
        })
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_long("it is over", async || {
            fleet.ask::<String>("select state from herder.run").await == "succeeded"
        })
        .await;
    assert_eq!(worker.drain().await, Some(0));
    // But for the slots, of which there are as many as the budget has.
    let read = "select (select sum(idx_tup_read) from pg_stat_user_indexes
                        where schemaname in ('herder', 'apalis') and relname <> 'slot')::bigint
                     + (select sum(seq_tup_read) from pg_stat_user_tables
                        where schemaname in ('herder', 'apalis') and relname <> 'slot')::bigint";
    let read: i64 = fleet.ask(read).await;
    assert!(
        (TENANTS..150 * TENANTS).contains(&read),
        "{} rows were read for each tenant",
        read / TENANTS
    );
}

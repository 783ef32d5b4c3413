//! What a person asks for is committed, and the answer to that is lost: the command finds out what became of it.

use crate::fleet::{Fleet, Setup, Tool, Wire, steps};

/// Runs a command, and cuts its links each time something of it is committed whose answer is still on its way.
async fn with_lost_answers(fleet: &Fleet, control: &Wire, args: &[&str], committed: &[&str]) {
    control.hold_answer_at("COMMIT");
    let cutting = async {
        for condition in committed {
            fleet
                .wait_until(condition, async || {
                    fleet.ask::<bool>(&format!("select {condition}")).await
                })
                .await;
            control.cut();
        }
        control.heal();
    };
    let (ended, ()) = tokio::join!(fleet.herder(args), cutting);
    ended.expect(0);
}

#[tokio::test]
async fn a_command_whose_commit_is_not_answered_finds_out_that_it_was_done() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(2)).start().await;
    let (control, tenants) = fleet.wires().await;
    let config = fleet.config_over(&control, &tenants);
    let command = async |args: &[&str], committed: &[&str]| {
        let args = [&["--config", &config], args].concat();
        with_lost_answers(&fleet, &control, &args, committed).await;
    };
    let run_is = |state: &str| format!("exists (select from herder.run where state = '{state}')");
    let server = "exists (select from herder.server)";
    command(&["upgrade"], &[server, &run_is("running")]).await;
    command(&["pause"], &[&run_is("paused")]).await;
    command(&["resume"], &[&run_is("running")]).await;
    let budget = "exists (select from herder.server where budget = 7)";
    command(&["budget", "main", "--set", "7"], &[budget]).await;

    fleet
        .tell(
            "update herder.job set state = 'failed', settled_at = now(), error = '{\"reason\": \"x\", \"message\": \"x\"}';
             update herder.run set state = 'failed', settled_at = now()",
        )
        .await;
    command(&["retry"], &[&run_is("running")]).await;
    assert_eq!(fleet.count("ready").await, 2);
    command(&["cancel", "--yes"], &[&run_is("cancelled")]).await;
    assert_eq!(fleet.count("cancelled").await, 2);
}

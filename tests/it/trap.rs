//! The `env.py` of a published guide, which reports success for every tenant and migrates none.

use crate::fleet::Setup;

#[tokio::test]
async fn an_env_that_never_commits_is_found_out() {
    let fleet = Setup::schemas(4).alembic_saas("alembic_docs.ini").start().await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let shown = fleet.herder(&["status", "--failed"]).await.expect(0);
    assert!(shown.stdout.contains("never commits"), "{}", shown.all());
    let status = fleet.status().await;
    for job in status["jobs"].as_array().expect("jobs") {
        assert_eq!(job["state"], "failed", "{job:#}");
        assert_eq!(job["error"]["reason"], "ledger_mismatch", "{job:#}");
        let hint = job["error"]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("commit"), "{job:#}");
    }
    fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn with_the_commit_every_tenant_is_migrated_where_it_lives() {
    let fleet = Setup::schemas(4)
        .alembic_saas("alembic_docs_commit.ini")
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    let listed = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(listed["counts"]["current"], 4, "{listed:#}");
    fleet.assert_public_untouched().await;
}

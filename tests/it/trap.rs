//! The `env.py` of a published guide, which reports success for every tenant and migrates none.

use crate::fleet::{Setup, Tool, steps};

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

/// The `env.py` that `alembic init` writes knows nothing of schemas. It is refused before it migrates `public`.
#[tokio::test]
async fn an_env_that_knows_no_schema_migrates_nothing() {
    let mut steps = steps(1);
    let first = steps.remove(0).with_its_table();
    let fleet = Setup::schemas(2)
        .migrations(Tool::Alembic, vec![first])
        .start()
        .await;
    fleet.project().file(
        "env.py",
        "from alembic import context\nfrom sqlalchemy import create_engine\n\
         url = context.get_x_argument(as_dictionary=True)['url'].replace('asyncpg', 'psycopg2')\n\
         with create_engine(url).connect() as connection:\n    \
         context.configure(connection=connection)\n    \
         with context.begin_transaction():\n        context.run_migrations()\n",
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["state"], "failed", "{job:#}");
        let hint = job["error"]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("version_table_schema"), "{job:#}");
    }
    fleet.assert_public_untouched().await;
}

//! Plans: kept once by their content, and never changed.

use sqlx::{PgConnection, PgPool, types::Json};

use super::StoreError;
use crate::domain::{
    job::AttemptId,
    plan::{Note, Plan},
};

/// Keeps a plan, and returns its id. Keeping it again changes nothing.
///
/// # Errors
/// The control database fails.
pub async fn insert(tx: &mut PgConnection, plan: &Plan) -> Result<String, StoreError> {
    let id = plan.id();
    sqlx::query!(
        "insert into herder.plan (id, body) values ($1, $2) on conflict do nothing",
        id,
        Json(plan) as Json<&Plan>,
    )
    .execute(tx)
    .await?;
    Ok(id)
}

/// Reads a plan.
///
/// # Errors
/// The control database fails, or has no such plan.
pub async fn load(connection: &mut PgConnection, id: &str) -> Result<Plan, StoreError> {
    let row = sqlx::query_scalar!(
        r#"select body as "body: Json<Plan>" from herder.plan where id = $1"#,
        id
    );
    Ok(row.fetch_one(connection).await?.0)
}

/// Notes how far an attempt got. False: the job went on without it.
///
/// # Errors
/// The control database fails.
pub async fn note(
    pool: &PgPool,
    attempt: AttemptId,
    worker: &str,
    note: Option<&Note>,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        // A retry with mended migrations may have taken the plan away.
        "update herder.job set plan_note = case when plan_id is not null then $4::jsonb end
         where id = $1 and epoch = $2 and worker = $3 and state = 'running'",
        attempt.job,
        attempt.epoch,
        worker,
        note.map(Json) as Option<Json<&Note>>,
    );
    Ok(done.execute(pool).await?.rows_affected() == 1)
}

//! Plans: kept once by their content, and never changed.

use sqlx::{PgConnection, types::Json};

use super::StoreError;
use crate::domain::plan::Plan;

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

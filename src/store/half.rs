//! What is half applied in tenants, and what their ledgers do not tell of.

use std::collections::HashMap;

use sqlx::{PgPool, types::Json};

use super::StoreError;
use crate::domain::{
    half::{Half, Piece},
    job::AttemptId,
    plan::Note,
    tenant::Place,
};

/// Writes what is left in an attempt's tenant, in place of what was written before; None: nothing. False: the job went on without
/// this attempt.
///
/// # Errors
/// The control database fails.
pub async fn write(
    pool: &PgPool,
    attempt: AttemptId,
    worker: &str,
    half: Option<&Half>,
) -> Result<bool, StoreError> {
    let piece = half.and_then(|half| half.piece.as_ref());
    let written = sqlx::query_scalar!(
        r#"with mine as materialized (
             select server, database, coalesce(schema, 'public') as schema from herder.job
             where id = $1 and epoch = $2 and worker = $3 and state = 'running'
             for no key update
           ), gone as (
             delete from herder.half_applied as half using mine
             where $4::text[] is null
               and half.server = mine.server and half.database = mine.database and half.schema = mine.schema
           ), written as (
             insert into herder.half_applied (server, database, schema, revisions, plan_id, note)
             select server, database, schema, $4, $5, $6 from mine where $4 is not null
             on conflict (server, database, schema) do update
             set revisions = excluded.revisions, plan_id = excluded.plan_id, note = excluded.note
           )
           select exists (select from mine) as "mine!""#,
        attempt.job,
        attempt.epoch,
        worker,
        half.map(|half| half.revisions.as_slice()) as Option<&[String]>,
        piece.map(|piece| piece.plan.as_str()),
        piece.map(|piece| Json(&piece.note)) as Option<Json<&Note>>,
    );
    Ok(written.fetch_one(pool).await?)
}

/// What is half applied in a tenant.
///
/// # Errors
/// The control database fails.
pub async fn of(pool: &PgPool, place: &Place) -> Result<Option<Half>, StoreError> {
    let (server, database, schema) = place.identity();
    let row = sqlx::query!(
        r#"select revisions, plan_id, note as "note: Json<Note>" from herder.half_applied
           where server = $1 and database = $2 and schema = $3"#,
        server,
        database,
        schema,
    );
    let row = row.fetch_optional(pool).await?;
    Ok(row.map(|row| half(row.revisions, row.plan_id, row.note)))
}

/// What is half applied in all of them.
///
/// # Errors
/// The control database fails.
pub async fn all(pool: &PgPool) -> Result<HashMap<Place, Half>, StoreError> {
    let rows = sqlx::query!(
        r#"select server, database, schema, revisions, plan_id, note as "note: Json<Note>" from herder.half_applied"#
    );
    let rows = rows.fetch_all(pool).await?.into_iter().map(|row| {
        let place = Place {
            server: row.server,
            database: row.database,
            schema: Some(row.schema),
        };
        (place, half(row.revisions, row.plan_id, row.note))
    });
    Ok(rows.collect())
}

fn half(revisions: Vec<String>, plan: Option<String>, note: Option<Json<Note>>) -> Half {
    let piece = plan.zip(note).map(|(plan, Json(note))| Piece { plan, note });
    Half { revisions, piece }
}

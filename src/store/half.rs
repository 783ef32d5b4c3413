//! What is half applied in tenants, and what their ledgers do not tell of.

use std::collections::HashMap;

use sqlx::{PgConnection, PgPool, types::Json};

use super::StoreError;
use crate::domain::{
    half::{Half, Piece},
    job::AttemptId,
    plan::Note,
    revision::Direction,
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
             insert into herder.half_applied (server, database, schema, direction, revisions, plan_id, note)
             select server, database, schema, $5, $4, $6, $7 from mine where $4 is not null
             on conflict (server, database, schema) do update
             set direction = excluded.direction, revisions = excluded.revisions, plan_id = excluded.plan_id, note = excluded.note,
                 noted_at = now()
           )
           select exists (select from mine) as "mine!""#,
        attempt.job,
        attempt.epoch,
        worker,
        half.map(|half| half.revisions.as_slice()) as Option<&[String]>,
        half.map(|half| half.direction.as_str()),
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
    let row = sqlx::query_as!(
        Row,
        r#"select server, database, schema, direction as "direction: Direction", revisions, plan_id, note as "note: Json<Note>"
           from herder.half_applied where server = $1 and database = $2 and schema = $3"#,
        server,
        database,
        schema,
    );
    let row = row.fetch_optional(pool).await?;
    Ok(row.map(|row| row.half().1))
}

/// What is half applied in all of them.
///
/// # Errors
/// The control database fails.
pub async fn all(pool: &PgPool) -> Result<HashMap<Place, Half>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select server, database, schema, direction as "direction: Direction", revisions, plan_id, note as "note: Json<Note>"
           from herder.half_applied"#
    );
    let rows = rows.fetch_all(pool).await?;
    Ok(rows.into_iter().map(Row::half).collect())
}

/// Forgets what was half applied in a tenant.
///
/// # Errors
/// The control database fails.
pub async fn forget(tx: &mut PgConnection, place: &Place) -> Result<(), StoreError> {
    let (server, database, schema) = place.identity();
    sqlx::query!(
        "delete from herder.half_applied where server = $1 and database = $2 and schema = $3",
        server,
        database,
        schema,
    )
    .execute(tx)
    .await?;
    Ok(())
}

struct Row {
    server: String,
    database: String,
    schema: String,
    direction: Direction,
    revisions: Vec<String>,
    plan_id: Option<String>,
    note: Option<Json<Note>>,
}

impl Row {
    fn half(self) -> (Place, Half) {
        let place = Place {
            server: self.server,
            database: self.database,
            schema: Some(self.schema),
        };
        let piece = self.plan_id.zip(self.note);
        let half = Half {
            direction: self.direction,
            revisions: self.revisions,
            piece: piece.map(|(plan, Json(note))| Piece { plan, note }),
        };
        (place, half)
    }
}

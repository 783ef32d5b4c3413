//! Whose the tenants are: what a role must be able to act as in order to migrate them.

use sqlx::{PgConnection, Row};

/// The role that `public` belongs to since PostgreSQL 15, or might as well before. Its one member is the database's owner, and it can have no other.
pub const DATABASE_OWNER: &str = "pg_database_owner";

/// A role that owns schemas of tenants, or tables in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Whether it is a superuser, which nobody should have to be for a migration.
    pub superuser: bool,
    /// How many of the schemas it owns, or something in them.
    pub schemas: i64,
    /// Whether we may act as it, or have what takes its place.
    pub ours: bool,
    /// The schemas that are its own. Where it is [`DATABASE_OWNER`], rights in them take the place of acting as it.
    pub names: Vec<String>,
}

/// The owners of these schemas and of what is in them; without any, those of the database that we are in.
///
/// # Errors
/// The connection broke.
pub async fn owners(connection: &mut PgConnection, schemas: &[&str]) -> Result<Vec<Owner>, sqlx::Error> {
    let rows = sqlx::query(
        // Up to PostgreSQL 14, `public` is the superuser's who made the cluster.
        "with wanted as (
           select oid, nspname::text,
                  case when nspname = 'public' and (select rolsuper from pg_roles where oid = nspowner)
                       then (select oid from pg_roles where rolname = $2) else nspowner end as nspowner
           from pg_namespace where nspname = any($1)
         ),
         owned as (
           select oid as place, nspowner as owner, nspname as schema from wanted
           union select relnamespace, relowner, null from pg_class
                 where relnamespace in (select oid from wanted) and relkind in ('r', 'p', 'v', 'm', 'S', 'f')
           union select pronamespace, proowner, null from pg_proc
                 where pronamespace in (select oid from wanted)
                   and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = pg_proc.oid and deptype = 'e')
           union select typnamespace, typowner, null from pg_type
                 where typnamespace in (select oid from wanted) and typtype in ('d', 'e', 'r')
                   and not exists (select from pg_depend where classid = 'pg_type'::regclass and objid = pg_type.oid and deptype = 'e')
           union select oid, datdba, null from pg_database where datname = current_database() and $1 = '{}'
         )
         select role.rolname::text, role.rolsuper, count(distinct place),
                pg_has_role(current_user, role.oid, 'usage')
                  or role.rolname = $2 and bool_and(has_schema_privilege(current_user, place, 'usage')
                                                    and has_schema_privilege(current_user, place, 'create')),
                coalesce(array_agg(schema order by schema) filter (where schema is not null), '{}')
         from owned join pg_roles role on role.oid = owned.owner
         group by role.oid, role.rolname, role.rolsuper order by 3 desc, 1",
    )
    .bind(schemas)
    .bind(DATABASE_OWNER)
    .persistent(false)
    .fetch_all(connection)
    .await?;
    let owner = |row: sqlx::postgres::PgRow| {
        Ok(Owner {
            name: row.try_get(0)?,
            superuser: row.try_get(1)?,
            schemas: row.try_get(2)?,
            ours: row.try_get(3)?,
            names: row.try_get(4)?,
        })
    };
    rows.into_iter().map(owner).collect()
}

/// Which of these schemas we may not use, or make anything in; without any, `public` of the database that we are in.
///
/// # Errors
/// The connection broke.
pub async fn closed(connection: &mut PgConnection, schemas: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select nspname::text from pg_namespace
         where nspname = any(case when $1 = '{}' then '{public}' else $1 end)
           and not (has_schema_privilege(current_user, oid, 'usage')
                    and has_schema_privilege(current_user, oid, 'create'))
         order by 1",
    )
    .bind(schemas)
    .persistent(false)
    .fetch_all(connection)
    .await
}

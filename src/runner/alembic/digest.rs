//! What a tenant is, as text: two tenants with the same text are the same.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::{domain::failure::cut, session::quote, tenant_error::TenantError};

/// What stands for the tenant's own schema in a digest.
const OWN: &str = "{schema}";

/// The types whose values may be the time of the migration.
const ZONED: &str = "timestamp with time zone";
const UNZONED: &str = "timestamp without time zone";

/// Everything in a schema of the catalogs, one line each, with the schema's name taken out. `None`: in the whole
/// database.
pub(super) async fn catalog(on: &mut PgConnection, schema: Option<&str>) -> Result<Vec<String>, TenantError> {
    // Without a path, every name in a definition is written in full.
    sqlx::query("select set_config('search_path', '', false)")
        .execute(&mut *on)
        .await?;
    let lines: Vec<String> = sqlx::query_scalar(include_str!("fingerprint.sql"))
        .bind(schema.unwrap_or_default())
        .persistent(false)
        .fetch_all(on)
        .await?;
    Ok(lines.into_iter().map(|line| own(line, schema)).collect())
}

/// The rows of every table in a schema, or in the whole database, and where its sequences stand. One line for each.
/// `since` is when the migration began, as the server tells the time: what `now()` left in a row is no difference.
pub(super) async fn rows(
    on: &mut PgConnection,
    schema: Option<&str>,
    since: &str,
) -> Result<Vec<String>, TenantError> {
    let columns: Vec<(String, Option<String>, String, bool)> = sqlx::query_as(COLUMNS)
        .bind(schema.unwrap_or_default())
        .persistent(false)
        .fetch_all(&mut *on)
        .await?;
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for (table, column, kind, is_random) in columns {
        if tables.last().is_none_or(|(last, _)| *last != table) {
            tables.push((table, Vec::new()));
        }
        if let (Some(column), Some((_, values))) = (column, tables.last_mut()) {
            values.push(value(&quote(&column), &kind, is_random, schema, since));
        }
    }
    let mut lines = Vec::with_capacity(tables.len());
    for (table, values) in tables {
        let digest: String = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) || ' ' || coalesce(md5(string_agg(line, E'\\n' order by line collate \"C\")), '')
             from (select array[{}]::text[]::text as line from only {table}) as lines",
            values.join(", ")
        )))
        .persistent(false)
        .fetch_one(&mut *on)
        .await?;
        lines.push(own(format!("rows {table} {digest}"), schema));
    }
    let sequences: Vec<String> = sqlx::query_scalar(SEQUENCES)
        .bind(schema.unwrap_or_default())
        .persistent(false)
        .fetch_all(&mut *on)
        .await?;
    for sequence in sequences {
        // The view of all sequences does not tell one that was set to begin at a value from one that is new.
        let at: String = sqlx::query_scalar(AssertSqlSafe(format!(
            "select concat_ws(' ', last_value, is_called) from {sequence}"
        )))
        .persistent(false)
        .fetch_one(&mut *on)
        .await?;
        lines.push(own(format!("sequence {sequence} at {at}"), schema));
    }
    Ok(lines)
}

/// The columns of all tables, and whether a column's values are drawn by chance, or refer to such a column.
const COLUMNS: &str = "
    with random as (
        select d.adrelid as rel, d.adnum as num from pg_attrdef d
        where pg_get_expr(d.adbin, d.adrelid) ~* '(gen_random_uuid|uuid_?generate|uuidv[47]|random|gen_salt|clock_timestamp|txid_current|pg_current_xact_id)'
    ),
    drawn as (
        select rel, num from random
        union
        select k.conrelid, key from pg_constraint k, unnest(k.conkey, k.confkey) as pair (key, foreign_key)
        join random on true
        where k.contype = 'f' and random.rel = k.confrelid and random.num = pair.foreign_key
    )
    select format('%I.%I', n.nspname, c.relname), a.attname::text, coalesce(format_type(a.atttypid, null), ''),
           exists (select from drawn where drawn.rel = c.oid and drawn.num = a.attnum)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relkind in ('r', 'm') and c.relispopulated
      and case when $1 = '' then n.nspname !~ '^pg_' and n.nspname <> 'information_schema' else n.nspname = $1 end
    order by 1, a.attnum";

/// All sequences that we may read: an extension's may be somebody else's.
const SEQUENCES: &str = "
    select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where case when c.relkind = 'S' then has_sequence_privilege(c.oid, 'SELECT') end
      and case when $1 = '' then n.nspname !~ '^pg_' else n.nspname = $1 end
    order by 1";

fn own(line: String, schema: Option<&str>) -> String {
    match schema {
        Some(schema) => line.replace(schema, OWN),
        None => line,
    }
}

/// A column's value as text, the same for all tenants.
fn value(column: &str, kind: &str, is_random: bool, schema: Option<&str>, since: &str) -> String {
    if is_random {
        return format!("case when {column} is not null then '<drawn>' end");
    }
    let now = |from: &str, until: &str| {
        format!("case when {column} between {from} and {until} then '<now>' else {column}::text end")
    };
    match kind {
        ZONED => now(&format!("'{since}'::timestamptz"), "clock_timestamp()"),
        // In whichever time zone somebody wrote it.
        UNZONED => now(
            &format!("'{since}'::timestamptz::timestamp - interval '26 hours'"),
            "clock_timestamp()::timestamp + interval '26 hours'",
        ),
        _ => match schema {
            Some(schema) => format!("replace({column}::text, '{schema}', '{OWN}')"),
            None => format!("{column}::text"),
        },
    }
}

/// The first thing that two digests have not in common, for a person.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) gone: String,
    pub(super) new: String,
}

/// What the second has instead of the first.
pub(super) fn difference(before: &[String], after: &[String]) -> Option<Difference> {
    let only = |these: &[String], others: &[String]| {
        let others: HashSet<&String> = others.iter().collect();
        let first = these.iter().find(|line| !others.contains(line))?;
        Some(cut(&first.split_whitespace().collect::<Vec<_>>().join(" "), 200))
    };
    let (gone, new) = (only(before, after), only(after, before));
    let differs = gone.is_some() || new.is_some() || before.len() != after.len();
    differs.then(|| Difference {
        gone: gone.unwrap_or_default(),
        new: new.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_is_gone_and_what_is_new() {
        let lines = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        assert_eq!(difference(&lines(&["a", "b"]), &lines(&["a", "b"])), None);
        let other = difference(&lines(&["a", "b  c"]), &lines(&["a", "d"]));
        let expected = Difference {
            gone: "b c".into(),
            new: "d".into(),
        };
        assert_eq!(other, Some(expected));
        assert!(difference(&lines(&["a"]), &lines(&["a", "a"])).is_some());
    }
}

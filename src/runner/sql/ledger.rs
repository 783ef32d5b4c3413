//! sqlx's own ledger, `_sqlx_migrations`, in the tenant's schema, as SQL for any tenant. Its table is named in full
//! everywhere: what a migration did to `search_path` must not lead us elsewhere.
//!
//! A file that runs outside a transaction is announced first, and recorded once it is through. While it is announced,
//! its row says `success = false`: what sqlx calls dirty, and refuses to build on; its `execution_time` says which of its
//! statements was begun last. Undoing such a file is announced
//! by an `execution_time` of its own instead, because a row without success would read as undone.

use super::{
    directory::{Migration, hex},
    script::Script,
};
use crate::{
    domain::plan::{SCHEMA, STATEMENT},
    runner::apply::{BEGAN, DIRTY, EDITED, block, raise},
    session::{literal, quote},
};

/// The table that sqlx writes.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// What `execution_time` says while a file without a transaction is being undone. sqlx writes -1 or nanoseconds.
const UNDOING: i64 = -2;

/// The rows of revisions that are half applied, or half undone ([`UNDOING`]).
pub(super) const HALF: &str = "not (success and execution_time <> -2)";

/// The table's full name in a plan.
fn table() -> String {
    format!("{}.{}", quote(SCHEMA), quote(TABLE))
}

/// Nanoseconds since a moment, which is given as seconds since 1970.
fn since(moment: &str) -> String {
    format!("((extract(epoch from pg_catalog.clock_timestamp()) - {moment}) * 1000000000)::pg_catalog.int8")
}

/// When a moment was, in seconds since 1970.
fn epoch(moment: &str) -> String {
    format!("extract(epoch from {moment})")
}

/// Makes the table, in sqlx's own words.
pub(super) fn make() -> String {
    format!(
        "create table if not exists {} (version bigint primary key, description text not null, \
         installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, \
         execution_time bigint not null)",
        table()
    )
}

/// Refuses a tenant in which something is half done, or was edited since: in sqlx's order. `resumable` may be half done.
pub(super) fn check<'a>(known: &[&Migration], resumable: impl Iterator<Item = &'a Migration>) -> String {
    let resumable: Vec<String> = resumable.map(|m| m.version.to_string()).collect();
    let known: Vec<String> = known
        .iter()
        .map(|m| {
            let (sum, file) = (hex(&m.checksum), literal(&m.up.file));
            format!("({}, '{sum}', {})", m.version, file.replace('%', "%%"))
        })
        .collect();
    // Nothing of a tenant's stands within the body's quotes: the name is put together on the server.
    let ask = |query: &str, into: &str, error: String| {
        format!(
            "execute pg_catalog.format({}, pg_catalog.current_schema()) into {into}; \
             if {into} is not null then {error}; end if; ",
            literal(query)
        )
    };
    let (table, schema) = (quote(TABLE), "pg_catalog.current_schema()");
    let mut body = format!(
        "if pg_catalog.to_regclass(pg_catalog.format('%I.{table}', {schema})) is null then return; end if; "
    );
    body += &ask(
        &format!(
            "select version::pg_catalog.text from %I.{table} \
             where {HALF} and version <> all ('{{{}}}') order by version limit 1",
            resumable.join(",")
        ),
        "herder_version",
        raise(DIRTY, "a migration is half applied", "herder_version"),
    );
    if !known.is_empty() {
        body += &ask(
            &format!(
                "select pg_catalog.json_build_object('revision', version::pg_catalog.text, 'file', known.file) \
                 from %I.{table} as applied join (values {}) as known (version, checksum, file) using (version) \
                 where applied.success and applied.checksum <> pg_catalog.decode(known.checksum, 'hex') order by version limit 1",
                known.join(", ")
            ),
            "herder_edited",
            raise(
                EDITED,
                "a migration was edited after it had been applied",
                "herder_edited",
            ),
        );
    }
    block(
        "herder_version pg_catalog.text; herder_edited pg_catalog.text;",
        &body,
    )
}

/// Whether the ledger holds these migrations, whole and unedited, and nothing else.
pub(super) fn is_exactly(known: &[&Migration]) -> String {
    let mut known: Vec<(i64, String)> = known.iter().map(|m| (m.version, hex(&m.checksum))).collect();
    known.sort_unstable();
    let rows: Vec<String> = known
        .iter()
        .map(|(version, sum)| format!("{version}:{sum}"))
        .collect();
    format!(
        "(select pg_catalog.string_agg(pg_catalog.concat(version, \
          case when success and execution_time <> {UNDOING} then ':' else '!' end, pg_catalog.encode(checksum, 'hex')), \
          ',' order by version) from {}) = '{}'",
        table(),
        rows.join(",")
    )
}

fn insert(m: &Migration, success: bool, took: &str) -> String {
    format!(
        "insert into {} (version, description, success, checksum, execution_time) \
         values ({}, {}, {success}, pg_catalog.decode('{}', 'hex'), {took})",
        table(),
        m.version,
        literal(&m.description),
        hex(&m.checksum),
    )
}

/// Records a migration, in its transaction. The transaction's own time is that of the message, and of all files in it.
pub(super) fn record(m: &Migration) -> String {
    let began = format!("nullif(pg_catalog.current_setting('{BEGAN}', true), '')::pg_catalog.numeric");
    let message = epoch("pg_catalog.transaction_timestamp()");
    let took = since(&format!("coalesce({began}, {message}::pg_catalog.numeric)"));
    format!("{}; {}", as_ourselves(&m.up), insert(m, true, &took))
}

/// The opposite of [`record`].
pub(super) fn erase(m: &Migration) -> String {
    let script = m.down.as_ref().unwrap_or(&m.up);
    format!("{}; {}", as_ourselves(script), complete_undo(m))
}

/// Back to our own role, whatever the file left. What it deferred is done in its own, as it would be at its own commit.
fn as_ourselves(script: &Script) -> String {
    let back = "reset session authorization; reset role";
    let body = script.body.to_ascii_lowercase();
    match ["role", "authorization"].iter().any(|word| body.contains(word)) {
        true => format!("set constraints all immediate; {back}"),
        false => back.to_owned(),
    }
}

/// Announces a migration that runs outside a transaction. Gives whether it was announced before, and the number of the
/// statement that was begun last: negative if there is none, as in a file that was mended since.
pub(super) fn announce(m: &Migration) -> String {
    let insert = insert(m, false, "-1").replacen(" (", " as announced (", 1);
    format!(
        "{insert} on conflict (version) do update set checksum = excluded.checksum, execution_time = \
         case when announced.checksum = excluded.checksum then announced.execution_time else -1 end \
         returning xmax <> 0, -2 - execution_time"
    )
}

/// Says that a statement of an announced migration is about to be done.
pub(super) fn begin(m: &Migration) -> String {
    format!(
        "update {} set execution_time = -2 - {STATEMENT} where version = {} and not success",
        table(),
        m.version
    )
}

/// Takes an announcement back: nothing was done.
pub(super) fn withdraw(m: &Migration) -> String {
    format!(
        "delete from {} where version = {} and not success",
        table(),
        m.version
    )
}

/// It is through. The file may have been mended since it was announced.
pub(super) fn complete(m: &Migration) -> String {
    format!(
        "update {} set success = true, execution_time = {}, description = {}, \
         checksum = pg_catalog.decode('{}', 'hex') where version = {}",
        table(),
        since(&epoch("installed_on")),
        literal(&m.description),
        hex(&m.checksum),
        m.version
    )
}

/// Announces that a migration is being undone outside a transaction.
pub(super) fn announce_undo(m: &Migration) -> String {
    format!("{} and execution_time <> {UNDOING}", execution_time(m, UNDOING))
}

/// Takes that back: nothing was undone.
pub(super) fn withdraw_undo(m: &Migration) -> String {
    execution_time(m, -1)
}

fn execution_time(m: &Migration, value: i64) -> String {
    format!(
        "update {} set execution_time = {value} where version = {}",
        table(),
        m.version
    )
}

/// It is undone.
pub(super) fn complete_undo(m: &Migration) -> String {
    format!("delete from {} where version = {}", table(), m.version)
}

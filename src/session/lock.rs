//! A tenant's lock: one advisory lock for all attempts at it, of whatever worker and version.

use sha2::{Digest, Sha256};

use super::TenantSession;
use crate::{
    domain::{
        job::AttemptLabel,
        tenant::{PUBLIC, Place},
    },
    tenant_error::TenantError,
};

/// Who holds a tenant's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An attempt of Herder's.
    Attempt(AttemptLabel),
    /// Somebody else, by application name.
    Stranger(String),
}

/// The key of a tenant's advisory lock. Such locks belong to a database, so the schema is enough to tell tenants
/// apart; the database's name alone would let only one tenant of a schema-per-tenant fleet migrate at a time.
///
/// A whole database's is that of no schema, as in every version so far; and `public` is the same place.
pub fn lock_key(place: &Place) -> i64 {
    let mut hash = Sha256::new();
    hash.update(b"herder/tenant\0");
    let (.., schema) = place.identity();
    hash.update(if schema == PUBLIC { "" } else { schema });
    let digest = hash.finalize();
    i64::from_be_bytes(digest[..8].try_into().unwrap_or_default())
}

impl TenantSession {
    /// The key of the tenant's lock.
    pub(crate) fn lock_key(&self) -> i64 {
        self.lock_key
    }

    /// Takes the tenant's lock for this session, without waiting: a blocking wait holds a snapshot, and deadlocks
    /// with CREATE INDEX CONCURRENTLY.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn try_lock(&mut self) -> Result<bool, TenantError> {
        let lock = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(self.lock_key)
            .persistent(false);
        Ok(lock.fetch_one(&mut self.connection).await?)
    }

    /// Who holds the tenant's lock now. None: nobody, by now.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn holder(&mut self) -> Result<Option<Holder>, TenantError> {
        let holder: Option<(i32, String)> = sqlx::query_as(
            "select a.pid, coalesce(a.application_name, '') from pg_locks l join pg_stat_activity a using (pid) \
             where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.pid <> pg_backend_pid() \
               and l.database = (select oid from pg_database where datname = current_database()) \
               and (l.classid::bigint << 32 | l.objid::bigint) = $1",
        )
        .bind(self.lock_key)
        .persistent(false)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(holder.map(|(pid, name)| match AttemptLabel::parse(&name) {
            Some(label) => Holder::Attempt(label),
            None if name.is_empty() => Holder::Stranger(format!("a session without a name (pid {pid})")),
            None => Holder::Stranger(format!("`{name}` (pid {pid})")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers of two versions must ask for the same lock: this key is no matter of taste any more.
    #[test]
    fn a_whole_database_keeps_its_lock_and_public_has_the_same() {
        let key = |schema: Option<&str>| {
            lock_key(&Place {
                server: "main".into(),
                database: "app".into(),
                schema: schema.map(str::to_owned),
            })
        };
        assert_eq!(key(None), -3_532_652_647_739_737_320);
        assert_eq!(key(Some("public")), key(None));
        assert_ne!(key(Some("acme")), key(None));
    }
}

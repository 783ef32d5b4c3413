//! Plans as workers hold them: read once each.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use sqlx::PgConnection;

use crate::{
    domain::{plan::Plan, tenant::Place},
    locked::locked,
    runner::apply::leaves_residue,
    store::{self, line::Line},
    tenant_error::TenantError,
};

/// How many plans are kept: far more than the runs that are open at a time have, far fewer than a year's.
const KEPT: usize = 64;

/// How long reading one may take.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// A plan, and what is known of it.
pub(super) struct Known {
    pub(super) plan: Plan,
    /// Whether it may leave something in its session that no SQL takes back.
    pub(super) leaves_residue: bool,
    /// Databases, with their servers, whose functions could mix up the types of two tenants in one session.
    mixing: Mutex<BTreeSet<(String, String)>>,
}

impl Known {
    /// Whether each tenant of this place's database needs a connection of its own.
    pub(super) fn mixes_types(&self, at: &Place) -> bool {
        let place = (at.server.clone(), at.database.clone());
        self.mixing().contains(&place)
    }

    /// Takes note of that.
    pub(super) fn note_mixing(&self, at: &Place) {
        self.mixing().insert((at.server.clone(), at.database.clone()));
    }

    fn mixing(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        locked(&self.mixing)
    }
}

/// The plans that this worker has come upon.
pub(super) struct Plans {
    line: Arc<Line>,
    known: Mutex<HashMap<String, Arc<Known>>>,
    /// Held while one is read: a run's first jobs come together, and all of them ask for the same.
    reading: tokio::sync::Mutex<()>,
}

impl Plans {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self {
            line,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// A plan by its id. It never changes.
    pub(super) async fn get(&self, id: &str) -> Result<Arc<Known>, TenantError> {
        if let Some(known) = self.known_as(id) {
            return Ok(known);
        }
        let _reading = self.reading.lock().await;
        if let Some(known) = self.known_as(id) {
            return Ok(known);
        }
        let loading = async |line: &mut PgConnection| store::plan::load(line, id).await;
        let read = self.line.with(READ_LIMIT, loading).await;
        let plan = read.map_err(|e| TenantError::ControlDatabase(format!("cannot read its plan: {e}")))?;
        let leaves_residue = leaves_residue(&plan);
        let read = Arc::new(Known {
            plan,
            leaves_residue,
            mixing: Mutex::default(),
        });
        let mut known = self.known();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(id.to_owned(), Arc::clone(&read));
        Ok(read)
    }

    fn known_as(&self, id: &str) -> Option<Arc<Known>> {
        self.known().get(id).map(Arc::clone)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Known>>> {
        locked(&self.known)
    }
}

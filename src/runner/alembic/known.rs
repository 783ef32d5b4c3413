//! The history of a project, read once for as long as its files are as they were.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Mutex;

use super::{Description, Project, RevisionFile, WarmPool, runner::to_error};
use crate::{
    domain::revision::{History, LedgerForm, Revision},
    tenant_error::TenantError,
};

/// How exact a file system's times are at least.
const TICK: Duration = Duration::from_millis(10);

/// The history of a project, once it was read.
#[derive(Default)]
pub(super) struct KnownHistory(Mutex<Option<Known>>);

impl KnownHistory {
    /// The history as it is now.
    ///
    /// # Errors
    /// The project cannot be read, or its history makes no sense.
    pub(super) async fn get(&self, pool: &WarmPool, project: &Project) -> Result<Arc<History>, TenantError> {
        let mut known = self.0.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.is_current()) {
            return Ok(Arc::clone(&known.history));
        }
        let began = SystemTime::now();
        let now = Known::read(pool, project).await?;
        let history = Arc::clone(&now.history);
        *known = Some(now).filter(|now| !now.was_written_since(began));
        Ok(history)
    }
}

/// A history, and the files that it was read from, as they were then.
struct Known {
    history: Arc<History>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// When a file was written, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    at: SystemTime,
    len: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            at: metadata.modified().ok()?,
            len: metadata.len(),
        })
    }
}

impl Known {
    async fn read(pool: &WarmPool, project: &Project) -> Result<Self, TenantError> {
        let mut process = pool.checkout().await.map_err(to_error)?;
        let description = process.describe(project).await.map_err(to_error)?;
        let files = files_of(&project.ini, &description);
        let revisions = description.revisions.into_iter().map(to_revision).collect();
        Ok(Self {
            history: Arc::new(History::new(revisions, LedgerForm::Heads)?),
            files: files.map(|path| (path.clone(), Stamp::of(&path))).collect(),
        })
    }

    fn is_current(&self) -> bool {
        self.files.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
    }

    /// What was written while it was read may have been read before. A clock that is behind must not make each look a new one.
    fn was_written_since(&self, began: SystemTime) -> bool {
        let meanwhile = began.checked_sub(TICK).unwrap_or(began)..=SystemTime::now();
        let mut stamps = self.files.iter().filter_map(|(_, stamp)| *stamp);
        stamps.any(|stamp| meanwhile.contains(&stamp.at))
    }
}

fn to_revision(file: RevisionFile) -> Revision {
    Revision {
        id: file.revision,
        down: file.down,
        depends_on: file.depends_on,
        label: file.label,
        file: Some(file.file),
        down_file: None,
        checksum: Some(file.sha256),
        resumes: Vec::new(),
    }
}

/// The files of a project and the folders that they are in: a new file changes its folder.
fn files_of(ini: &Path, description: &Description) -> impl Iterator<Item = PathBuf> + use<> {
    let directory = ini.parent().unwrap_or(Path::new("/"));
    let revisions = description.revisions.iter();
    let revisions: Vec<PathBuf> = revisions.map(|r| directory.join(&r.file)).collect();
    let folders = revisions.iter().filter_map(|file| file.parent());
    let folders: BTreeSet<PathBuf> = folders.map(Path::to_owned).collect();
    revisions.into_iter().chain(folders).chain([ini.to_owned()])
}

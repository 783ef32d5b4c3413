//! A folder of migrations as sqlx-cli writes it, read by sqlx itself: versions, descriptions, checksums and
//! `-- no-transaction` are exactly what `sqlx migrate` makes of it.

use std::{collections::BTreeMap, ffi::OsString, io, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use sqlx::migrate::{Migration as Resolved, resolve_blocking};

use super::script::Script;
use crate::{
    domain::revision::{Direction, History, LedgerForm, Revision},
    tenant_error::TenantError,
};

/// One version.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) version: i64,
    /// The version as text: the revision's id.
    pub(super) id: String,
    pub(super) description: String,
    /// SHA-384 of the file that goes up: what sqlx keeps.
    pub(super) checksum: Vec<u8>,
    pub(super) up: Script,
    pub(super) down: Option<Script>,
}

impl Migration {
    /// In which directions what broke off of it is taken up again.
    fn resumes(&self) -> Vec<Direction> {
        let up = self.up.is_resumable().then_some(Direction::Upgrade);
        let down = self.down.as_ref().filter(|down| down.is_resumable());
        up.into_iter().chain(down.map(|_| Direction::Downgrade)).collect()
    }
}

/// The folder's content.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) history: Arc<History>,
    migrations: BTreeMap<i64, Migration>,
}

/// What tells whether a folder changed: name, inode, length and both times of each file in it.
pub(super) type Fingerprint = Vec<(OsString, u64, u64, i64, i64, i64, i64)>;

/// Looks at the folder without reading its files.
pub(super) fn fingerprint(folder: &Path) -> Result<Fingerprint, TenantError> {
    let look = || -> io::Result<Fingerprint> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // A link is followed: Kubernetes swaps the target of one to change a mounted ConfigMap.
            let m = std::fs::metadata(entry.path())
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", entry.file_name().display())))?;
            let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            files.push((
                entry.file_name(),
                m.ino(),
                m.len(),
                times.0,
                times.1,
                times.2,
                times.3,
            ));
        }
        files.sort();
        Ok(files)
    };
    look().map_err(|e| setup(format!("cannot read the migrations in {}: {e}", folder.display())))
}

fn setup(message: String) -> TenantError {
    TenantError::Setup {
        message,
        hint: "[runner] `directory` names a folder with <version>_<name>.sql, or .up.sql and .down.sql, as \
               `sqlx migrate add` writes them"
            .into(),
    }
}

impl Directory {
    /// Reads the folder. Blocks.
    pub(super) fn read(folder: &Path) -> Result<Self, TenantError> {
        let resolved = resolve_blocking(folder).map_err(|e| {
            let cause = std::error::Error::source(&e)
                .map(|c| format!(": {c}"))
                .unwrap_or_default();
            setup(format!(
                "cannot read the migrations in {}: {e}{cause}",
                folder.display()
            ))
        })?;
        if resolved.is_empty() {
            return Err(setup(format!("there is no migration in {}", folder.display())));
        }
        let (mut ups, mut downs) = (BTreeMap::new(), BTreeMap::new());
        for (migration, path) in resolved {
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let side = match migration.migration_type.is_down_migration() {
                true => &mut downs,
                false => &mut ups,
            };
            let version = migration.version;
            if let Some((_, other)) = side.insert(version, (migration, file.clone())) {
                return Err(setup(format!(
                    "version {version} stands there twice: {other} and {file}"
                )));
            }
        }
        if let Some((_, (_, file))) = downs.iter().find(|(version, _)| !ups.contains_key(version)) {
            return Err(setup(format!(
                "{file} undoes a version that has no file to go up"
            )));
        }
        Self::new(ups, downs)
    }

    fn new(
        ups: BTreeMap<i64, (Resolved, String)>,
        mut downs: BTreeMap<i64, (Resolved, String)>,
    ) -> Result<Self, TenantError> {
        let script = |(m, file): (Resolved, String)| Script::new(file, m.sql.as_str(), m.no_tx);
        let migrations: BTreeMap<i64, Migration> = ups
            .into_iter()
            .map(|(version, (up, file))| {
                let migration = Migration {
                    version,
                    id: version.to_string(),
                    description: up.description.clone().into_owned(),
                    checksum: up.checksum.to_vec(),
                    up: script((up, file)),
                    down: downs.remove(&version).map(script),
                };
                (version, migration)
            })
            .collect();
        let mut below: Option<&str> = None;
        let mut revisions = Vec::with_capacity(migrations.len());
        for migration in migrations.values() {
            revisions.push(Revision {
                id: migration.id.clone(),
                down: below.iter().map(|id| (*id).to_owned()).collect(),
                depends_on: Vec::new(),
                label: migration.description.clone(),
                file: Some(migration.up.file.clone()),
                down_file: migration.down.as_ref().map(|down| down.file.clone()),
                checksum: Some(hex(&migration.checksum)),
                resumes: migration.resumes(),
            });
            below = Some(&migration.id);
        }
        let history = Arc::new(History::new(revisions, LedgerForm::Applied)?);
        Ok(Self { history, migrations })
    }

    pub(super) fn get(&self, version: i64) -> Option<&Migration> {
        self.migrations.get(&version)
    }

    /// What to run for these revisions, in this order. Nothing is run where one of them has no way down.
    pub(super) fn work(
        &self,
        direction: Direction,
        pending: &[String],
    ) -> Result<Vec<(&Migration, &Script)>, TenantError> {
        let work = pending.iter().map(|id| {
            let found = id.parse().ok().and_then(|version| self.get(version));
            let migration = found.ok_or(TenantError::OtherMigrations)?;
            match direction {
                Direction::Upgrade => Ok((migration, &migration.up)),
                Direction::Downgrade => match &migration.down {
                    Some(down) => Ok((migration, down)),
                    None => Err(TenantError::Irreversible(id.clone())),
                },
            }
        });
        work.collect()
    }
}

/// Bytes in hex, as `decode(…, 'hex')` takes them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::{super::plan::plan, *};
    use crate::domain::revision::Ledger;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("a file");
        }
        let path = folder.path().to_owned();
        (folder, path)
    }

    fn complaint(files: &[(&str, &str)]) -> String {
        let (_folder, path) = folder(files);
        let error = Directory::read(&path).expect_err("it is wrong");
        assert!(matches!(error, TenantError::Setup { .. }), "{error:?}");
        error.to_string().replace(&path.display().to_string(), "FOLDER")
    }

    #[test]
    fn versions_and_checksums_are_those_of_sqlx() {
        let (_folder, path) = folder(&[
            ("0002_second_thing.up.sql", "select 2"),
            ("0002_second_thing.down.sql", "select -2"),
            ("1_first.sql", "select 1"),
            ("10_tenth.sql", "-- no-transaction\nselect 10"),
            ("README.md", "not a migration"),
        ]);
        let directory = Directory::read(&path).expect("a directory");
        let seen: Vec<_> = directory
            .history
            .revisions()
            .iter()
            .map(|r| (r.id.as_str(), r.down.join(","), r.label.as_str(), r.file.clone()))
            .collect();
        assert_eq!(
            seen,
            [
                ("1", String::new(), "first", Some("1_first.sql".into())),
                (
                    "2",
                    "1".into(),
                    "second thing",
                    Some("0002_second_thing.up.sql".into())
                ),
                ("10", "2".into(), "tenth", Some("10_tenth.sql".into())),
            ]
        );
        let checksum = sqlx::migrate::Migration::new(
            1,
            "first".into(),
            sqlx::migrate::MigrationType::Simple,
            sqlx::SqlStr::from_static("select 1"),
            false,
        )
        .checksum;
        assert_eq!(directory.history.revisions()[0].checksum, Some(hex(&checksum)));
        let undo = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).into()).collect();
            directory.work(Direction::Downgrade, &ids).map(|work| work.len())
        };
        assert_eq!(undo(&["2"]).ok(), Some(1));
        assert!(matches!(undo(&["2", "1"]), Err(TenantError::Irreversible(id)) if id == "1"));
    }

    #[test]
    fn a_folder_that_makes_no_sense_says_why() {
        assert_eq!(complaint(&[("notes.txt", "")]), "there is no migration in FOLDER");
        assert_eq!(
            complaint(&[("1_a.sql", ""), ("01_b.sql", "")]).split(':').next(),
            Some("version 1 stands there twice")
        );
        assert_eq!(
            complaint(&[("1_a.sql", ""), ("2_b.down.sql", "")]),
            "2_b.down.sql undoes a version that has no file to go up"
        );
        assert!(complaint(&[("first_a.sql", "")]).contains("first_a.sql"));
        let missing = fingerprint(Path::new("/nowhere/at/all")).expect_err("it is missing");
        assert!(missing.to_string().contains("/nowhere/at/all"), "{missing}");
    }

    #[test]
    fn a_file_that_cannot_be_sent_is_named() {
        let (_folder, path) = folder(&[("1_a.sql", "select 'a\0b'")]);
        let directory = Directory::read(&path).expect("a directory");
        let complaint = |target| {
            let base = Ledger::default();
            let plan = plan(&directory, Direction::Upgrade, &base, Some(target));
            plan.expect_err("it cannot be sent").to_string()
        };
        assert_eq!(
            complaint("1"),
            "1_a.sql holds a NUL byte, which PostgreSQL cannot read"
        );
    }

    #[test]
    fn an_edit_changes_the_fingerprint() {
        let (_folder, path) = folder(&[("1_a.sql", "select 1")]);
        let before = fingerprint(&path).expect("a fingerprint");
        assert_eq!(fingerprint(&path).expect("a fingerprint"), before);
        fs::write(path.join("1_a.sql"), "select 2 ").expect("a file");
        assert_ne!(fingerprint(&path).expect("a fingerprint"), before);
    }
}

//! Where this machine keeps `initdb` and `postgres`.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ThrowawayError, io_error};

/// Where packages put a version's programs: a folder, how the entries in it begin before their version, and the way
/// on from there. The version is in the entry's name, and the highest one wins.
const KNOWN: [(&str, &str, &str); 6] = [
    ("usr/lib/postgresql", "", "bin"),          // Debian, Ubuntu
    ("usr", "pgsql-", "bin"),                   // the RPMs of postgresql.org
    ("opt/homebrew/opt", "postgresql@", "bin"), // Homebrew, Apple silicon
    ("usr/local/opt", "postgresql@", "bin"),    // Homebrew, Intel
    ("Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("Library/PostgreSQL", "", "bin"), // EnterpriseDB's installer
];

/// A folder that holds both server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    bin: PathBuf,
}

impl Programs {
    /// Looks in `PG_BIN_DIR`, then on the `PATH`, then where `pg_config` says, then in the [`KNOWN`] places.
    pub(super) fn find() -> Result<Self, ThrowawayError> {
        if let Some(dir) = env::var_os("PG_BIN_DIR").filter(|dir| !dir.is_empty()) {
            let dir = PathBuf::from(dir);
            return Self::in_folder(&dir).ok_or(ThrowawayError::WrongBinDir(dir));
        }
        env::var_os("PATH")
            .and_then(|path| Self::on_path(&path))
            .or_else(Self::by_pg_config)
            .or_else(|| Self::in_known_places(Path::new("/")))
            .ok_or(ThrowawayError::NotFound)
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.bin.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.bin.join("postgres")
    }

    /// Asks `initdb` where it keeps its extensions: unlike `pg_config`, it is always there. `command` makes a command
    /// that does not run as root, which `initdb` would refuse.
    pub(super) fn check_contrib(&self, command: impl Fn(&Path) -> Command) -> Result<(), ThrowawayError> {
        let output = command(&self.initdb())
            .args(["--show", "-D", "unused"])
            .output()
            .map_err(io_error("run `initdb --show`"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Where it does not say, the first CREATE EXTENSION will.
        let Some(share) = said.lines().find_map(|line| line.strip_prefix("share_path=")) else {
            return Ok(());
        };
        let extension = Path::new(share).join("extension");
        let has = |name: &str| extension.join(name).exists();
        if has("hstore.control") && has("pgcrypto.control") {
            return Ok(());
        }
        Err(ThrowawayError::NoContrib(extension))
    }

    fn in_folder(bin: &Path) -> Option<Self> {
        let complete = bin.join("initdb").is_file() && bin.join("postgres").is_file();
        complete.then(|| Self { bin: bin.to_owned() })
    }

    /// A link on the `PATH` leads to the folder that has `initdb` as well: `postgres` looks for its files from there.
    fn on_path(path: &OsStr) -> Option<Self> {
        env::split_paths(path).find_map(|dir| {
            let postgres = fs::canonicalize(dir.join("postgres")).ok()?;
            Self::in_folder(postgres.parent()?)
        })
    }

    /// `pg_config` alone proves nothing: libpq's development package has it without a server.
    fn by_pg_config() -> Option<Self> {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Self::in_folder(Path::new(String::from_utf8(output.stdout).ok()?.trim()))
    }

    fn in_known_places(root: &Path) -> Option<Self> {
        let mut found: Vec<(Vec<u32>, Self)> = Vec::new();
        for (folder, prefix, rest) in KNOWN {
            for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let version = name
                    .to_str()
                    .and_then(|name| name.strip_prefix(prefix))
                    .and_then(version);
                let programs = Self::in_folder(&entry.path().join(rest));
                found.extend(version.zip(programs));
            }
        }
        found
            .into_iter()
            .max_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, programs)| programs)
    }
}

/// Reads `17` or `9.6`; numbers, so that 10 is above 9.6.
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(root: &Path, bin: &str, programs: &[&str]) {
        let bin = root.join(bin);
        fs::create_dir_all(&bin).expect("a folder");
        for program in programs {
            fs::write(bin.join(program), "").expect("a program");
        }
    }

    #[test]
    fn the_highest_version_wins_by_number_and_only_with_both_programs() {
        let root = tempfile::tempdir().expect("a folder");
        let both = ["initdb", "postgres"];
        install(root.path(), "usr/lib/postgresql/9.6/bin", &both);
        install(root.path(), "usr/lib/postgresql/18/bin", &["psql"]);
        install(root.path(), "usr/pgsql-16/bin", &both);
        install(root.path(), "usr/pgsql-broken/bin", &both);
        install(root.path(), "opt/homebrew/opt/postgresql@15/bin", &both);
        let found = Programs::in_known_places(root.path()).expect("programs");
        assert_eq!(found.bin, root.path().join("usr/pgsql-16/bin"));
    }

    #[test]
    fn nothing_installed_is_nothing_found() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(Programs::in_known_places(root.path()), None);
    }

    #[test]
    fn a_link_on_the_path_leads_to_the_folder_with_initdb() {
        let root = tempfile::tempdir().expect("a folder");
        install(root.path(), "real", &["initdb", "postgres"]);
        let links = root.path().join("links");
        fs::create_dir(&links).expect("a folder");
        std::os::unix::fs::symlink(root.path().join("real/postgres"), links.join("postgres"))
            .expect("a link");
        let found = Programs::on_path(links.as_os_str()).expect("programs");
        assert_eq!(
            found.bin,
            fs::canonicalize(root.path().join("real")).expect("a path")
        );
    }
}

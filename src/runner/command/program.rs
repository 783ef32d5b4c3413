//! Whether a program can be run at all, and what to do where it cannot.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use crate::tenant_error::TenantError;

/// Finds out whether a program could be started, without starting it. A name without a folder is looked for in `path`,
/// as the system does it: the first that may be executed counts.
pub(super) fn find(program: &Path, directory: &Path, path: &OsStr) -> Result<(), TenantError> {
    let candidates: Vec<PathBuf> = match program.as_os_str().as_bytes().contains(&b'/') {
        true => vec![program.to_owned()],
        // A relative folder of PATH begins where the program will run.
        false => env::split_paths(path)
            .map(|folder| directory.join(folder).join(program))
            .collect(),
    };
    let mut why = io::ErrorKind::NotFound;
    let found = directory.is_dir()
        && candidates.iter().any(|candidate| match is_executable(candidate) {
            Ok(true) => true,
            Ok(false) => {
                why = io::ErrorKind::PermissionDenied;
                false
            }
            Err(_) => false,
        });
    match found {
        true => Ok(()),
        false => Err(cannot_start(program, directory, &why.into())),
    }
}

/// Whether this process may execute the file.
fn is_executable(file: &Path) -> io::Result<bool> {
    Ok(fs::metadata(file)?.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// Why a program does not run, with what to do about it.
pub(super) fn cannot_start(program: &Path, directory: &Path, error: &io::Error) -> TenantError {
    let named = program.display();
    let (message, hint) = match error.kind() {
        io::ErrorKind::NotFound if !directory.is_dir() => (
            format!("the folder {} does not exist", directory.display()),
            "[runner] `directory` names the folder to run the command in",
        ),
        io::ErrorKind::NotFound => (
            format!("cannot run `{named}`: there is no such program"),
            "install it, or write its path in [runner]; a relative path begins in `directory`",
        ),
        io::ErrorKind::PermissionDenied => (
            format!("cannot run `{named}`: permission denied"),
            "make it executable (chmod +x), or name its interpreter first, as in [\"sh\", \"migrate.sh\"]",
        ),
        _ => (
            format!("cannot run `{named}`: {error}"),
            "see whether it runs by hand, as the worker's user",
        ),
    };
    TenantError::Setup {
        message,
        hint: hint.into(),
    }
}

//! The example projects, carried inside the binary: the demo needs no checkout.

use std::{fs, io, path::Path};

/// A file of the examples.
macro_rules! example {
    ($path:literal) => {
        include_str!(concat!("../../../../examples/", $path))
    };
}

/// The data of one tenant. Both projects have the same tables where the demo begins.
pub(super) const SEED: &str = example!("sql-saas/seed.sql");

/// Paths below the project's folder, with what stands in the files.
type Files = &'static [(&'static str, &'static str)];

const SQL: Files = &[
    (
        "migrations/0001_accounts.down.sql",
        example!("sql-saas/migrations/0001_accounts.down.sql"),
    ),
    (
        "migrations/0001_accounts.up.sql",
        example!("sql-saas/migrations/0001_accounts.up.sql"),
    ),
    (
        "migrations/0002_projects.down.sql",
        example!("sql-saas/migrations/0002_projects.down.sql"),
    ),
    (
        "migrations/0002_projects.up.sql",
        example!("sql-saas/migrations/0002_projects.up.sql"),
    ),
    (
        "migrations/0003_tasks.down.sql",
        example!("sql-saas/migrations/0003_tasks.down.sql"),
    ),
    (
        "migrations/0003_tasks.up.sql",
        example!("sql-saas/migrations/0003_tasks.up.sql"),
    ),
    (
        "migrations/0004_comments.down.sql",
        example!("sql-saas/migrations/0004_comments.down.sql"),
    ),
    (
        "migrations/0004_comments.up.sql",
        example!("sql-saas/migrations/0004_comments.up.sql"),
    ),
    (
        "migrations/0005_plans.down.sql",
        example!("sql-saas/migrations/0005_plans.down.sql"),
    ),
    (
        "migrations/0005_plans.up.sql",
        example!("sql-saas/migrations/0005_plans.up.sql"),
    ),
    (
        "migrations/0006_unique_emails.down.sql",
        example!("sql-saas/migrations/0006_unique_emails.down.sql"),
    ),
    (
        "migrations/0006_unique_emails.up.sql",
        example!("sql-saas/migrations/0006_unique_emails.up.sql"),
    ),
    (
        "migrations/0007_touch_tasks.down.sql",
        example!("sql-saas/migrations/0007_touch_tasks.down.sql"),
    ),
    (
        "migrations/0007_touch_tasks.up.sql",
        example!("sql-saas/migrations/0007_touch_tasks.up.sql"),
    ),
    (
        "migrations/0008_tags_and_settings.down.sql",
        example!("sql-saas/migrations/0008_tags_and_settings.down.sql"),
    ),
    (
        "migrations/0008_tags_and_settings.up.sql",
        example!("sql-saas/migrations/0008_tags_and_settings.up.sql"),
    ),
    (
        "migrations/0009_open_tasks_by_due.down.sql",
        example!("sql-saas/migrations/0009_open_tasks_by_due.down.sql"),
    ),
    (
        "migrations/0009_open_tasks_by_due.up.sql",
        example!("sql-saas/migrations/0009_open_tasks_by_due.up.sql"),
    ),
];

const ALEMBIC: Files = &[
    ("alembic_schema.ini", example!("alembic-saas/alembic_schema.ini")),
    ("env_schema/env.py", example!("alembic-saas/env_schema/env.py")),
    (
        "versions/0001_accounts.py",
        example!("alembic-saas/versions/0001_accounts.py"),
    ),
    (
        "versions/0002_projects.py",
        example!("alembic-saas/versions/0002_projects.py"),
    ),
    (
        "versions/0003_tasks_enum.py",
        example!("alembic-saas/versions/0003_tasks_enum.py"),
    ),
    (
        "versions/0004_user_prefs.py",
        example!("alembic-saas/versions/0004_user_prefs.py"),
    ),
    (
        "versions/0005_comments.py",
        example!("alembic-saas/versions/0005_comments.py"),
    ),
    (
        "versions/0006_plans.py",
        example!("alembic-saas/versions/0006_plans.py"),
    ),
    (
        "versions/0007_account_plan.py",
        example!("alembic-saas/versions/0007_account_plan.py"),
    ),
    (
        "versions/0008_billing.py",
        example!("alembic-saas/versions/0008_billing.py"),
    ),
    (
        "versions/0009_touch_trigger.py",
        example!("alembic-saas/versions/0009_touch_trigger.py"),
    ),
    (
        "versions/0010_tags_settings.py",
        example!("alembic-saas/versions/0010_tags_settings.py"),
    ),
    (
        "versions/0011_audit.py",
        example!("alembic-saas/versions/0011_audit.py"),
    ),
    (
        "versions/0012_task_priority.py",
        example!("alembic-saas/versions/0012_task_priority.py"),
    ),
];

/// A project to migrate tenants with, and what goes wrong with it.
pub(super) struct Project {
    files: Files,
    /// The section `[runner]` of its config.
    pub(super) runner: String,
    /// The revision that the tenants stand at when the demo begins.
    pub(super) start: &'static str,
    /// What is wrong in one tenant, for people.
    pub(super) problem: &'static str,
    /// The statement that made it so.
    pub(super) trouble: &'static str,
    /// What a person does about it.
    pub(super) mend: &'static str,
}

impl Project {
    /// Plain SQL files.
    pub(super) fn sql() -> Self {
        Self {
            files: SQL,
            runner: "kind = \"sql\"\ndirectory = \"migrations\"".into(),
            start: "3",
            problem: "a person signed up twice there, and revision 6 wants e-mail addresses to be unique",
            trouble: example!("sql-saas/duplicate_email.sql"),
            mend: "DELETE FROM users WHERE email = 'Ada.Lovelace@Example.com'",
        }
    }

    /// Alembic, run by this interpreter.
    pub(super) fn alembic(python: &Path) -> Self {
        Self {
            files: ALEMBIC,
            runner: format!(
                "kind = \"alembic\"\nconfig = \"alembic_schema.ini\"\npython = {:?}",
                python.display().to_string()
            ),
            start: "0003_tasks_enum",
            problem: "it has an account `default` already, and revision 0006_plans adds one of that name",
            trouble: "INSERT INTO accounts (slug, name) VALUES ('default', 'Somebody was faster')",
            mend: "UPDATE accounts SET slug = 'former-default' WHERE slug = 'default'",
        }
    }

    /// Writes its files.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        for (path, text) in self.files {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in a folder of the examples.
    fn listed(folder: &str) -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(folder);
        let mut names: Vec<String> = fs::read_dir(path)
            .expect("the examples")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .filter(|name| name.ends_with(".sql") || name.ends_with(".py"))
            .collect();
        names.sort();
        names
    }

    fn carried(files: Files, folder: &str) -> Vec<String> {
        let names = files.iter().filter_map(|(path, _)| path.strip_prefix(folder));
        names.map(str::to_owned).collect()
    }

    #[test]
    fn no_migration_of_the_examples_is_left_out() {
        assert_eq!(carried(SQL, "migrations/"), listed("sql-saas/migrations"));
        assert_eq!(carried(ALEMBIC, "versions/"), listed("alembic-saas/versions"));
    }
}

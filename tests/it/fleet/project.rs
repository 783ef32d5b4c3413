//! Migrations that leave a trace: the same steps, written for each of the runners.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Cluster, gate};
use crate::venv;

/// Revisions in their order. The third is the only one that begins with `202502`.
const IDS: [&str; 5] = ["20250101", "20250102", "20250203", "20250304", "20250305"];

/// A runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Sql,
    Alembic,
    Command,
}

/// A migration.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) id: &'static str,
    /// Statements. Some drivers take only one at a time.
    up: Vec<String>,
    down: Vec<String>,
}

/// So many migrations. Each does nothing but leave a trace.
pub(crate) fn steps(count: usize) -> Vec<Step> {
    let step = |id: &'static str| Step {
        id,
        up: vec![format!("insert into effects (step) values ('up {id}')")],
        down: vec![format!("insert into effects (step) values ('down {id}')")],
    };
    IDS[..count].iter().copied().map(step).collect()
}

impl Step {
    /// On the way up it first leaves its trace, and then waits at a closed gate.
    pub(crate) fn gated(self) -> Self {
        self.then(gate::PASS)
    }

    /// On the way up it also makes the table that the traces are left in, so that it works in a schema that the harness
    /// knows nothing of.
    pub(crate) fn with_its_table(mut self) -> Self {
        self.up.insert(
            0,
            "create table if not exists effects (n int generated always as identity, step text)".into(),
        );
        self
    }

    /// On the way up it does nothing but this, outside a transaction. Only the SQL runner knows how.
    pub(crate) fn outside(mut self, sql: &str) -> Self {
        self.up = vec![format!("-- no-transaction\n{sql}")];
        self
    }

    /// On the way up it does this as well.
    pub(crate) fn then(mut self, sql: &str) -> Self {
        self.up.push(sql.to_owned());
        self
    }

    /// On the way down it first leaves its trace, and then waits at a closed gate.
    pub(crate) fn gated_down(self) -> Self {
        self.undone_by(gate::PASS)
    }

    /// On the way down it does this as well.
    pub(crate) fn undone_by(mut self, sql: &str) -> Self {
        self.down.push(sql.to_owned());
        self
    }
}

/// A folder with migrations.
pub(crate) struct Project {
    tool: Tool,
    dir: PathBuf,
    psql: PathBuf,
}

impl Project {
    /// Writes one below `dir`.
    pub(crate) fn write(tool: Tool, dir: &Path, cluster: &Cluster, steps: &[Step]) -> Self {
        let project = Self {
            tool,
            dir: dir.join("project"),
            psql: cluster.program("psql"),
        };
        fs::create_dir(&project.dir).expect("a folder");
        if tool == Tool::Alembic {
            let env = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/examples/alembic-saas/env_schema/env.py"
            );
            fs::copy(env, project.dir.join("env.py")).expect("env.py");
            let ini = "[alembic]\nscript_location = %(here)s\nsqlalchemy.url = postgresql+asyncpg://nobody@localhost/nowhere\n";
            project.file("alembic.ini", ini);
            fs::create_dir(project.dir.join("versions")).expect("a folder");
        }
        project.rewrite(steps);
        project
    }

    /// Writes the migrations anew, as a developer does who mends one.
    pub(crate) fn rewrite(&self, steps: &[Step]) {
        match self.tool {
            Tool::Sql => {
                for Step { id, up, down } in steps {
                    self.file(&format!("{id}_step.up.sql"), &format!("{};\n", up.join(";\n")));
                    self.file(
                        &format!("{id}_step.down.sql"),
                        &format!("{};\n", down.join(";\n")),
                    );
                }
            }
            Tool::Alembic => {
                let mut below = "None".to_owned();
                for Step { id, up, down } in steps {
                    let execute = |sql: &String| format!("    op.execute(\"\"\"{sql}\"\"\")\n");
                    let up: String = up.iter().map(execute).collect();
                    let down: String = down.iter().map(execute).collect();
                    let text = format!(
                        "from alembic import op\nrevision = '{id}'\ndown_revision = {below}\n\n\
                         def upgrade():\n{up}\ndef downgrade():\n{down}"
                    );
                    self.file(&format!("versions/{id}_step.py"), &text);
                    below = format!("'{id}'");
                }
            }
            Tool::Command => self.script(steps),
        }
    }

    /// A shell script that does with psql what many a team's own tool does: one file after the other, each in a
    /// transaction with its line in the ledger.
    fn script(&self, steps: &[Step]) {
        let mut below = None;
        for Step { id, up, down } in steps {
            let ledger = "create table if not exists version (v text); delete from version";
            self.file(
                &format!("{id}.up"),
                &format!(
                    "{};\n{ledger}; insert into version values ('{id}');\n",
                    up.join(";\n")
                ),
            );
            let back = below.map_or_else(String::new, |b| format!("insert into version values ('{b}');"));
            let down = down.join(";\n");
            self.file(&format!("{id}.down"), &format!("{down};\n{ledger}; {back}\n"));
            below = Some(*id);
        }
        let ids: Vec<&str> = steps.iter().map(|s| s.id).collect();
        let back: Vec<&str> = ids.iter().rev().copied().collect();
        let psql = format!(
            "{} -X -q -v ON_ERROR_STOP=1 -v VERBOSITY=verbose",
            self.psql.display()
        );
        let script = format!(
            r#"set -e
from=$HERDER_FROM; [ "$from" != base ] || from=0
to=$HERDER_TO; [ "$to" != base ] || to=0
if [ "$HERDER_DIRECTION" = upgrade ]; then
    for id in {up}; do
        [ "$id" -le "$from" ] || [ "$id" -gt "$to" ] || {psql} -1 -f "$id.up"
    done
else
    for id in {down}; do
        [ "$id" -gt "$from" ] || [ "$id" -le "$to" ] || {psql} -1 -f "$id.down"
    done
fi
"#,
            up = ids.join(" "),
            down = back.join(" "),
        );
        self.file("migrate.sh", &script);
        let current = "select to_regclass('version') is not null as there \\gset\n\
                       \\if :there\nselect v from version;\n\\endif\n";
        self.file("current.psql", current);
        self.file("revisions", &ids.join("\n"));
    }

    /// Writes one file of it, and makes its folder.
    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect(name);
        fs::write(path, text).expect(name);
    }

    /// What is in one file of it.
    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).expect(name)
    }

    /// What stands under `[runner]`.
    pub(crate) fn runner(&self) -> Table {
        let dir = self.dir.display();
        let entry = |name: &str, value: Value| (name.to_owned(), value);
        let text = |text: String| Value::String(text);
        let words = |words: &[&str]| Value::Array(words.iter().map(|w| text((*w).to_owned())).collect());
        let entries = match self.tool {
            Tool::Sql => vec![
                entry("kind", text("sql".into())),
                entry("directory", text(dir.to_string())),
            ],
            Tool::Alembic => vec![
                entry("kind", text("alembic".into())),
                // What it waits for, it would wait for in a proof, too. `Setup::plans` makes fleets with plans.
                entry("plan", text("never".into())),
                entry("config", text(format!("{dir}/alembic.ini"))),
                entry("python", text(venv::python().display().to_string())),
            ],
            Tool::Command => {
                let psql = self.psql.display().to_string();
                vec![
                    entry("kind", text("command".into())),
                    entry("command", words(&["sh", "migrate.sh"])),
                    entry(
                        "current_command",
                        words(&[&psql, "-X", "-A", "-t", "-q", "-f", "current.psql"]),
                    ),
                    entry("history_command", words(&["cat", "revisions"])),
                    entry("directory", text(dir.to_string())),
                ]
            }
        };
        entries.into_iter().collect()
    }
}

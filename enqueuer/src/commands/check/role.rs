//! The SQL that gives Herder a role which is enough, and no more.

use herder::{
    domain::tenant::{Isolation, Tenant},
    session::{
        arithmetic::Role,
        privileges::{DATABASE_OWNER, Owner},
        quote,
    },
};

use crate::render::words::count;

/// The role that the SQL makes where Herder comes as a superuser so far.
const MIGRATOR: &str = "herder_migrator";

/// For how many tenants' databases it is written out.
const SHOWN: usize = 50;

/// What the SQL is for.
pub(super) struct Needs<'a> {
    pub(super) server: &'a str,
    pub(super) tenants: &'a [&'a Tenant],
    /// As whom Herder comes now.
    pub(super) role: &'a Role,
    /// Whose the tenants are.
    pub(super) owners: &'a [Owner],
    pub(super) budget: i32,
    /// Whether plans are proven in schemas made for that.
    pub(super) proves: bool,
}

impl Needs<'_> {
    /// Statements for the DBA. None: the role has the limit, and all that it needs.
    pub(super) fn sql(&self) -> Option<String> {
        let limited = !self.role.superuser && self.role.limit == Some(self.budget);
        if limited && self.owners.iter().all(|owner| owner.ours) {
            return None;
        }
        let mut sql = format!(
            "-- server {}: a role that migrates {}; to be run by the DBA\n",
            self.server,
            count(self.tenants.len() as u64, "tenant")
        );
        sql += &self.role();
        sql += &self.databases();
        for owner in self.owners {
            sql += &self.owner(owner);
        }
        Some(sql)
    }

    fn name(&self) -> String {
        quote(match self.role.superuser {
            true => MIGRATOR,
            false => &self.role.name,
        })
    }

    fn role(&self) -> String {
        let (name, budget) = (self.name(), self.budget);
        match self.role.superuser {
            true => format!(
                "CREATE ROLE {name} LOGIN CONNECTION LIMIT {budget};  -- then give it a password: \\password {name}\n"
            ),
            // A member that does not inherit may do nothing as the owner.
            false => {
                let inherit = if self.owners.iter().all(|owner| owner.ours) {
                    ""
                } else {
                    " INHERIT"
                };
                format!("ALTER ROLE {name}{inherit} CONNECTION LIMIT {budget};\n")
            }
        }
    }

    fn databases(&self) -> String {
        let name = self.name();
        let of = |isolation: fn(Isolation) -> bool| {
            let there = self.tenants.iter().filter(|t| isolation(t.isolation));
            let mut databases: Vec<String> = there.map(|t| quote(&t.place.database)).collect();
            databases.sort();
            databases.dedup();
            databases
        };
        let mut sql = String::new();
        for database in of(|isolation| isolation != Isolation::Database) {
            // Schemas for the proof of a plan are made, and dropped, beside the tenants'.
            let create = if self.proves { ", CREATE" } else { "" };
            sql += &format!("GRANT CONNECT{create} ON DATABASE {database} TO {name};\n");
        }
        let databases = of(|isolation| isolation == Isolation::Database);
        for database in databases.iter().take(SHOWN) {
            sql += &format!("GRANT CONNECT, CREATE ON DATABASE {database} TO {name};\n");
        }
        if let Some(rest) = databases.len().checked_sub(SHOWN).filter(|rest| *rest > 0) {
            sql += &format!("-- and the same for {} more\n", count(rest as u64, "database"));
        }
        sql
    }

    /// Only its owner may alter a table: a role acts as one by being its member.
    fn owner(&self, owner: &Owner) -> String {
        let (name, its) = (self.name(), quote(&owner.name));
        if owner.name == DATABASE_OWNER {
            let grant =
                |schema: &String| format!("GRANT USAGE, CREATE ON SCHEMA {} TO {name};\n", quote(schema));
            let grants: String = owner.names.iter().map(grant).collect();
            return format!(
                "-- Run this in the tenants' database. {its} stands for its owner and cannot be granted.\n{grants}"
            );
        }
        if owner.superuser {
            return format!(
                "-- {} (or objects in them) belong to the superuser {its}: change their owner\n\
                 -- (ALTER SCHEMA … OWNER TO …, ALTER TABLE … OWNER TO …) to a role of which {name} is a member.\n",
                count(u64::try_from(owner.schemas).unwrap_or_default(), "schema")
            );
        }
        if owner.name == self.role.name {
            return String::new();
        }
        let granted = format!("GRANT {its} TO {name};\n");
        let Some(place) = self.place_of(owner) else {
            return granted;
        };
        format!(
            "{granted}\
             -- Objects that it creates belong to it: this gives the application access to them.\n\
             ALTER DEFAULT PRIVILEGES FOR ROLE {name}{place} GRANT ALL ON TABLES TO {its};\n\
             ALTER DEFAULT PRIVILEGES FOR ROLE {name}{place} GRANT ALL ON SEQUENCES TO {its};\n"
        )
    }

    /// Where an owner gets what Herder makes. Nothing of another owner's: one that is alone has the whole database.
    fn place_of(&self, owner: &Owner) -> Option<String> {
        let ordinary = |o: &&Owner| !o.superuser && o.name != DATABASE_OWNER && !o.names.is_empty();
        let shared = self.owners.iter().filter(ordinary).count() > 1
            || owner.names.is_empty() && self.owners.iter().any(|o| !o.names.is_empty());
        if !shared {
            return Some(String::new());
        }
        let names: Vec<String> = owner.names.iter().map(|name| quote(name)).collect();
        (!names.is_empty()).then(|| format!(" IN SCHEMA {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use herder::domain::tenant::Place;

    use super::*;

    #[test]
    fn no_owner_gets_what_is_made_for_another() {
        let owner = |name: &str, names: &[&str]| Owner {
            name: name.into(),
            superuser: false,
            schemas: 1,
            ours: false,
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let role = Role {
            name: "migrator".into(),
            superuser: false,
            not_ours: 0,
            limit: None,
            read_only: false,
        };
        let sql = |owners: &[Owner]| {
            let needs = Needs {
                server: "main",
                tenants: &[],
                role: &role,
                owners,
                budget: 8,
                proves: false,
            };
            needs.sql().expect("something to do")
        };
        let alone = sql(&[owner("a", &["t1", "t2"])]);
        assert!(
            alone.contains("FOR ROLE \"migrator\" GRANT ALL ON TABLES TO \"a\""),
            "{alone}"
        );
        assert!(
            alone.contains("ALTER ROLE \"migrator\" INHERIT CONNECTION LIMIT 8"),
            "{alone}"
        );
        let several = sql(&[owner("a", &["t1", "t2"]), owner("b", &["t3"]), owner("c", &[])]);
        assert!(
            several.contains("IN SCHEMA \"t1\", \"t2\" GRANT ALL ON TABLES TO \"a\""),
            "{several}"
        );
        assert!(
            several.contains("IN SCHEMA \"t3\" GRANT ALL ON SEQUENCES TO \"b\""),
            "{several}"
        );
        assert_eq!(several.matches("GRANT ALL").count(), 4, "{several}");
    }

    #[test]
    fn every_database_is_granted_or_counted() {
        let tenant = |n: usize| Tenant {
            id: n.to_string(),
            isolation: Isolation::Database,
            place: Place {
                server: "main".into(),
                database: format!("c {n:02}"),
                schema: None,
            },
            own_url: false,
            members: vec![],
        };
        let role = Role {
            name: "migrator".into(),
            superuser: false,
            not_ours: 0,
            limit: None,
            read_only: false,
        };
        let sql = |tenants: usize| {
            let tenants: Vec<Tenant> = (0..tenants).map(tenant).collect();
            let needs = Needs {
                server: "main",
                tenants: &tenants.iter().collect::<Vec<_>>(),
                role: &role,
                owners: &[],
                budget: 8,
                proves: false,
            };
            needs.databases()
        };
        assert_eq!(
            sql(2),
            "GRANT CONNECT, CREATE ON DATABASE \"c 00\" TO \"migrator\";\n\
             GRANT CONNECT, CREATE ON DATABASE \"c 01\" TO \"migrator\";\n"
        );
        let many = sql(SHOWN + 2);
        assert_eq!(many.lines().count(), SHOWN + 1);
        assert!(many.ends_with("-- and the same for 2 databases more\n"), "{many}");
    }
}

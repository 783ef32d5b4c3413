//! The fleets.

/// A tenant, as all contenders get it.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) id: String,
    pub(crate) database: String,
    pub(crate) schema: Option<String>,
}

/// A fleet: so many schemas in one database, or so many databases.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fleet {
    Schemas(usize),
    Databases(usize),
}

impl Fleet {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Schemas(count) => format!("{count} schemas"),
            Self::Databases(count) => format!("{count} databases"),
        }
    }

    pub(crate) fn count(self) -> usize {
        let (Self::Schemas(count) | Self::Databases(count)) = self;
        count
    }

    pub(crate) fn tenants(self) -> Vec<Tenant> {
        let tenant = |n: usize| match self {
            Self::Schemas(_) => Tenant {
                id: format!("t{n:06}"),
                database: HOME.to_owned(),
                schema: Some(format!("t{n:06}")),
            },
            Self::Databases(_) => Tenant {
                id: format!("d{n:06}"),
                database: format!("d{n:06}"),
                schema: None,
            },
        };
        (1..=self.count()).map(tenant).collect()
    }
}

/// The database that the schemas are in.
pub(crate) const HOME: &str = "home";

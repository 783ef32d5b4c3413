//! Where a run goes, as a person says it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Which way a run moves its tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Direction {
    /// Towards the newest revision.
    Upgrade,
    /// Towards the empty database.
    Downgrade,
}

impl Direction {
    /// The word as it stands in tables, JSON and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Downgrade => "downgrade",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the target of a run was named. Relative targets mean another revision for each tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest revision.
    Head,
    /// Before the first revision.
    Base,
    /// A revision, or a prefix that only one has; or `REV+N`, `REV-N`: what that means only the history tells, for a
    /// revision's own name may look like it.
    Revision(String),
    /// So many revisions up (positive) or down (negative) from where the tenant stands.
    Relative(i64),
}

impl Target {
    /// Which way a run goes to it. `downgrade`: whether down was asked for, where the target could be either.
    pub fn direction(&self, downgrade: bool) -> Direction {
        match self {
            Self::Base | Self::Relative(..0) => Direction::Downgrade,
            _ if downgrade => Direction::Downgrade,
            _ => Direction::Upgrade,
        }
    }

    /// What the checksum of a run to it covers, where it is `absolute` for all: an upgrade needs nothing above that. None: all
    /// revisions, since everything else may touch any.
    pub fn covered(&self, direction: Direction, absolute: Option<String>) -> Option<String> {
        match (direction, self) {
            (Direction::Upgrade, Self::Head | Self::Revision(_)) => absolute,
            _ => None,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let s = s.trim();
        match s {
            "" => Err("a target is head, base, a revision, a prefix of one, +N or -N".into()),
            // Alembic's word for all heads: where there are several, the complaint names them.
            "head" | "heads" => Ok(Self::Head),
            "base" => Ok(Self::Base),
            _ if s.starts_with(['+', '-']) => match s.parse() {
                Ok(0) | Err(_) => Err(format!("`{s}` is not a step: write +1, -2 and so on")),
                Ok(n) => Ok(Self::Relative(n)),
            },
            _ => Ok(Self::Revision(s.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Base => f.write_str("base"),
            Self::Revision(r) => f.write_str(r),
            Self::Relative(n) => write!(f, "{n:+}"),
        }
    }
}

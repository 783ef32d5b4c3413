//! Where a tenant stands, or goes.

/// Where a tenant stands, or goes, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// Nobody can say: its ledger could not be read, and a relative target depends on that.
    #[default]
    Unknown,
    /// Nothing is applied.
    Base,
    /// What is applied, as a person calls it: the newest revision, or one for each branch.
    At(String),
}

impl Position {
    /// What is known of it. No revision means the base.
    pub fn known(revision: Option<String>) -> Self {
        revision.map_or(Self::Base, Self::At)
    }

    /// The same from what is stored: the revision, and whether that is known.
    pub fn stored(revision: Option<String>, is_known: bool) -> Self {
        match is_known {
            true => Self::known(revision),
            false => Self::Unknown,
        }
    }

    /// Whether it is known.
    pub fn is_known(&self) -> bool {
        *self != Self::Unknown
    }

    /// The revision. None: the base, or not known.
    pub fn revision(&self) -> Option<&str> {
        match self {
            Self::At(revision) => Some(revision),
            Self::Unknown | Self::Base => None,
        }
    }

    /// The same, to keep.
    pub fn to_revision(&self) -> Option<String> {
        self.revision().map(str::to_owned)
    }
}

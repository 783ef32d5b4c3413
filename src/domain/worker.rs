//! How Herder's own sessions call themselves on a server, so that anybody can tell whose they are, and their heirs end
//! what they left. Those of an attempt are [`Claim::label`](super::job::Claim::label)'s.

/// How many characters of a worker's id are random: they alone tell two processes apart.
const RANDOM: usize = 32;

/// What the holder of a server's service connection does over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Reads ledgers, asks about the server, or looks for an attempt's session.
    Inspect,
    /// Proves a plan.
    Proof,
    /// Ends what lost attempts have left.
    Reclaim,
    /// Rehearses plans.
    Rehearsal,
}

impl Errand {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Inspect, Self::Proof, Self::Reclaim, Self::Rehearsal];

    /// The label of its session. It bears the mark of its fleet: another one on the same server, and by the same role, has a
    /// service connection of its own.
    pub fn label(self, mark: &str) -> String {
        let errand = match self {
            Self::Inspect => "inspect",
            Self::Proof => "shadow",
            Self::Reclaim => "reclaim",
            Self::Rehearsal => "rehearsal",
        };
        format!("herder/{errand}/{mark}")
    }
}

/// The label of a worker's connections to the control database.
pub fn control_label(worker: &str) -> String {
    format!("herder-worker/{}", random_part(worker))
}

/// The label of a connection to a tenant's database that a worker keeps open between two attempts.
pub fn kept_label(worker: &str) -> String {
    format!("herder/kept/{}", random_part(worker))
}

/// Names have no limit, labels do: PostgreSQL cuts them at 63 bytes, and a cut random part would be another worker's.
fn random_part(worker: &str) -> &str {
    let start = worker.len().saturating_sub(RANDOM);
    worker.get(start..).unwrap_or(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_holds_the_random_part_and_fits() {
        let random = "0123456789abcdef0123456789abcdef";
        let id = format!("ä-name-that-is-as-long-as-it-likes-and-then-some-{random}");
        assert_eq!(kept_label(&id), format!("herder/kept/{random}"));
        assert!(control_label(&id).len() <= 63);
        assert_eq!(control_label("short"), "herder-worker/short");
        assert!(
            Errand::ALL
                .iter()
                .all(|errand| errand.label("0a1b2c3d").len() <= 63)
        );
        assert_eq!(Errand::Proof.label("0a1b2c3d"), "herder/shadow/0a1b2c3d");
    }
}

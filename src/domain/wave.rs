//! Waves: which jobs are released together.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer};

use crate::secret::shown;

/// How near to a whole number a share must be, relative to its size, to be taken for it. Floats are wrong by a thousandth of this,
/// and no person writes a percentage with ten digits.
const EXACT: f64 = 1e-12;

/// A number of tenants, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(f64),
}

impl Amount {
    /// Whether it is none at all, of however many.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Count(0)) || self == Self::Percent(0.0)
    }

    /// The number that it means out of `total`. A share is rounded up, so that 1 % of 20 is a tenant.
    pub fn of(self, total: usize) -> usize {
        self.rounded(total, f64::ceil)
    }

    /// The most that is not more than it, out of `total`.
    pub fn within(self, total: usize) -> usize {
        self.rounded(total, f64::floor)
    }

    fn count(n: i128) -> Result<Self, String> {
        let count = u32::try_from(n).map(Self::Count);
        count.map_err(|_| format!("`{n}` is not between 0 and {}", u32::MAX))
    }

    fn rounded(self, total: usize, round: fn(f64) -> f64) -> usize {
        match self {
            Self::Count(n) => n as usize,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a count fits one"
            )]
            Self::Percent(p) => {
                let share = total as f64 * p / 100.0;
                // 64.6 % of 500 is 322.99999999999994 to a computer.
                let whole = share.round();
                let is_whole = (share - whole).abs() <= EXACT * share.max(1.0);
                (if is_whole { whole } else { round(share) }) as usize
            }
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || {
            let what = shown(s);
            format!("`{what}` is neither a number nor a percentage: write 5 or \"5%\"")
        };
        match s.trim().strip_suffix('%') {
            Some(p) => match p.trim().parse::<f64>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Self::Percent(p)),
                Ok(_) => Err(format!("`{}` is not between 0% and 100%", s.trim())),
                Err(_) => Err(wrong()),
            },
            None => s.trim().parse().map_err(|_| wrong()).and_then(Self::count),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(i64),
            Text(String),
        }
        match Raw::deserialize(d)
            .map_err(|_| serde::de::Error::custom("expected a number or a percentage like \"50%\""))?
        {
            Raw::Number(n) => Self::count(n.into()).map_err(serde::de::Error::custom),
            Raw::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// How a run releases its jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rollout {
    /// The size of the first, small wave. None, or of nobody: there is no canary.
    pub canary: Option<Amount>,
    /// The size of each further wave. None: all the rest at once.
    pub wave: Option<Amount>,
    /// How many tenants may fail before the run halts: one more halts it. None: it never halts.
    pub failure_limit: Option<Amount>,
}

impl Rollout {
    /// Whether there is a canary.
    pub fn has_canary(&self) -> bool {
        self.canary.is_some_and(|canary| !canary.is_zero())
    }

    /// The wave of each of `total` jobs, from 0 on.
    pub fn waves(&self, total: usize) -> impl Iterator<Item = i32> + use<> {
        let canary = self.canary.map_or(0, |c| c.of(total)).min(total);
        let size = self.wave.map_or(total, |w| w.of(total)).max(1);
        let first = i32::from(canary > 0);
        (0..total).map(move |i| match i.checked_sub(canary) {
            None => 0,
            Some(rest) => first + i32::try_from(rest / size).unwrap_or(i32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(canary: Option<&str>, wave: Option<&str>, total: usize) -> Vec<i32> {
        let amount = |s: &str| s.parse().expect("amount");
        Rollout {
            canary: canary.map(amount),
            wave: wave.map(amount),
            failure_limit: None,
        }
        .waves(total)
        .collect()
    }

    #[test]
    fn a_canary_of_nobody_is_none() {
        for (canary, there) in [
            (None, false),
            (Some("0"), false),
            (Some("0%"), false),
            (Some("1%"), true),
        ] {
            let rollout = Rollout {
                canary: canary.map(|c| c.parse().expect("amount")),
                ..Rollout::default()
            };
            assert_eq!(rollout.has_canary(), there, "{canary:?}");
        }
    }

    #[test]
    fn a_share_that_is_a_whole_number_is_that_number() {
        // Every percentage with one digit behind the point.
        for tenths in 0..=1000_u32 {
            let amount: Amount = format!("{}.{}%", tenths / 10, tenths % 10)
                .parse()
                .expect("amount");
            for total in [1, 7, 500, 1000, 99_999] {
                let exact = tenths as usize * total;
                let (below, above) = (exact / 1000, exact.div_ceil(1000));
                assert_eq!(
                    (amount.within(total), amount.of(total)),
                    (below, above),
                    "{amount} of {total}"
                );
            }
        }
    }

    #[test]
    fn a_canary_goes_first_and_the_rest_in_waves() {
        assert_eq!(waves(None, None, 3), [0, 0, 0]);
        assert_eq!(waves(Some("1"), None, 4), [0, 1, 1, 1]);
        assert_eq!(waves(Some("1"), Some("2"), 6), [0, 1, 1, 2, 2, 3]);
        assert_eq!(waves(Some("50%"), Some("25%"), 4), [0, 0, 1, 2]);
        assert_eq!(waves(Some("9"), Some("1"), 2), [0, 0]);
        assert_eq!(waves(Some("0"), Some("1"), 2), [0, 1]);
        assert_eq!(waves(Some("0%"), None, 2), [0, 0]);
        assert_eq!(
            [20, 25, 100].map(|total| Amount::Percent(4.0).within(total)),
            [0, 1, 4]
        );
        assert!("x%".parse::<Amount>().is_err());
        assert!("101%".parse::<Amount>().is_err());
    }
}

//! How long, how hard, and with which seed.

/// What was asked for.
pub(crate) struct Args {
    pub(crate) minutes: f64,
    pub(crate) seed: u64,
    /// Faults a minute.
    pub(crate) rate: f64,
    /// Tenants in each of the two groups of the `sql` project.
    pub(crate) tenants: usize,
    /// Only this project.
    pub(crate) only: Option<String>,
}

const USAGE: &str = "usage: just chaos [--minutes M] [--seed S] [--rate FAULTS_A_MINUTE] [--tenants N] [--only sql|command|alembic]";

impl Args {
    /// Reads the command line.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            minutes: 5.0,
            // What nobody chose is still said, so that it can be had again.
            seed: u64::from(rand::random::<u32>()),
            rate: 110.0,
            tenants: 200,
            only: None,
        };
        while let Some(word) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("{word} wants a value\n{USAGE}"))?;
            let wrong = |_| format!("{word} {value}: not a number\n{USAGE}");
            match word.as_str() {
                "--minutes" => args.minutes = value.parse().map_err(wrong)?,
                "--rate" => args.rate = value.parse().map_err(wrong)?,
                "--seed" => {
                    args.seed = value
                        .parse()
                        .map_err(|_| format!("{word} {value}: not a number\n{USAGE}"))?
                }
                "--tenants" => {
                    args.tenants = value
                        .parse()
                        .map_err(|_| format!("{word} {value}: not a number\n{USAGE}"))?
                }
                "--only" => args.only = Some(value),
                _ => return Err(format!("unknown {word}\n{USAGE}")),
            }
        }
        Ok(args)
    }
}

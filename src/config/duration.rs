//! Durations as people write them: `3s`, `15min`, `1h 30m`.

use std::time::Duration;

use humantime::parse_duration;
use serde::{Deserialize, Deserializer, de::Error};

use crate::secret::shown;

/// With more, nobody can count on from now.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    let shown = shown(&text);
    match parse_duration(&text) {
        Ok(duration) if duration > LONGEST => {
            Err(D::Error::custom(format!("`{shown}` is longer than a year")))
        }
        parsed => {
            parsed.map_err(|e| D::Error::custom(format!("`{shown}` is not a duration like \"3s\": {e}")))
        }
    }
}

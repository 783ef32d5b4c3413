//! `[notify]`: who is told of runs.

use std::time::Duration;

use serde::Deserialize;

use super::duration;
use crate::{domain::notice::Occasion, secret::Secret};

/// `[notify]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotifyConfig {
    /// Where to POST a JSON message when a run starts, halts or finishes: Slack's incoming webhooks and what is like
    /// them. Default: nowhere; so does an empty one.
    pub webhook: Option<Secret>,
    /// How long one POST may take. Default: 5 s. Too short: a slow receiver misses messages. Too long: a command that
    /// ends waits so long for a receiver that hangs. No run ever waits.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Of what to tell. Default: all of `start`, `halt`, `finish`.
    pub events: Vec<Occasion>,
}

impl Default for NotifyConfig {
    fn default() -> Self {
        Self {
            webhook: None,
            timeout: Duration::from_secs(5),
            events: Occasion::ALL.to_vec(),
        }
    }
}

impl NotifyConfig {
    /// The webhook. An empty text is none, so that a variable can turn it off.
    pub fn webhook(&self) -> Option<&Secret> {
        self.webhook
            .as_ref()
            .filter(|url| !url.expose().trim().is_empty())
    }

    /// What is wrong with it. The URL is a secret: no message shows any of it.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let url = self.webhook().map(|url| url::Url::parse(url.expose().trim()));
        match url {
            Some(Ok(url)) if !matches!(url.scheme(), "http" | "https") => {
                Some("`webhook` must begin with https:// or http://")
            }
            Some(Err(_)) => Some("`webhook` is not a valid URL"),
            _ if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) => {
                Some("`timeout` must be more than 0s, and at most 1min")
            }
            _ => None,
        }
    }
}

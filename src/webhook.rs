//! A webhook: one POST with a JSON body. The only file that names the HTTP client.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use ureq::Agent;

use crate::secret::Secret;

/// Where messages go.
#[derive(Clone)]
pub struct Webhook {
    /// Whoever knows it may write there: it is shown nowhere.
    url: Arc<Secret>,
    agent: Agent,
}

/// Why a message did not arrive. No text of the client's is in it: that may name the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The receiver said no.
    #[error("it answered {0}")]
    Status(u16),
    /// It did not answer in time. It may have got the message.
    #[error("it did not answer in time")]
    Timeout,
    /// It cannot be reached.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
}

impl Webhook {
    /// A webhook that one message may take so long.
    pub fn new(url: Secret, timeout: Duration) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // Where a redirect leads is not where the URL's owner wanted it.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("herder/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            url: Arc::new(url),
            agent: config.into(),
        }
    }

    /// Posts a message, within the timeout.
    ///
    /// # Errors
    /// See [`WebhookError`].
    pub async fn post(&self, message: &Value) -> Result<(), WebhookError> {
        let (webhook, body) = (self.clone(), message.to_string());
        // The client blocks. A thread that hangs ends by its timeout, and keeps nobody from ending the process.
        tokio::task::spawn_blocking(move || webhook.post_blocking(body))
            .await
            .unwrap_or_else(|_| Err(WebhookError::Unreachable("the client panicked".into())))
    }

    fn post_blocking(&self, body: String) -> Result<(), WebhookError> {
        let request = self
            .agent
            .post(self.url.expose().trim())
            .content_type("application/json");
        match request.send(body) {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(WebhookError::Status(answer.status().as_u16())),
            Err(error) => Err(reason(&error)),
        }
    }
}

fn reason(error: &ureq::Error) -> WebhookError {
    let text = match error {
        ureq::Error::Timeout(_) => return WebhookError::Timeout,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            return WebhookError::Timeout;
        }
        ureq::Error::Io(error) => error.kind().to_string(),
        ureq::Error::HostNotFound => "no such host".into(),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => "TLS failed".into(),
        ureq::Error::InvalidProxyUrl => "the proxy in the environment is not valid".into(),
        ureq::Error::Protocol(_) => "the answer is not HTTP".into(),
        _ => "no connection".into(),
    };
    WebhookError::Unreachable(text)
}

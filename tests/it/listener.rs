//! A server that hears what Herder sends: a webhook's receiver, or a collector of spans.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, http::HeaderMap, http::StatusCode, http::Uri};
use serde_json::Value;

/// How long something may take to arrive on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it should.
    Takes,
    /// It says 500, whatever comes.
    Refuses,
    /// It never answers.
    Hangs,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// It ends with the test's runtime.
pub(crate) struct Listener {
    address: std::net::SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Listener {
    pub(crate) async fn start(manner: Manner) -> Self {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let ears = Arc::clone(&heard);
        let hear = move |uri: Uri, headers: HeaderMap, body: Bytes| async move {
            let path = uri.path().to_owned();
            let heard = Heard { path, headers, body };
            ears.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
            match manner {
                Manner::Takes => StatusCode::OK,
                Manner::Refuses => StatusCode::INTERNAL_SERVER_ERROR,
                Manner::Hangs => std::future::pending().await,
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = axum::serve(listener, Router::new().fallback(hear));
        tokio::spawn(async move { server.await.expect("a server") });
        Self { address, heard }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for so many requests.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Heard> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let heard = self.heard();
            if heard.len() >= count {
                return heard;
            }
            assert!(Instant::now() < deadline, "only {heard:#?}, and not {count}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Heard {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

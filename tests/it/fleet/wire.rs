//! The network between a worker and a server, as a test would have it: it stands still at a certain statement, goes
//! silent, loses answers, or is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How often a connection that stands still looks whether its client has gone.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to bytes.
#[derive(Clone, Default)]
struct Rules {
    /// Whatever a client says from this text on stays where it is.
    hold_at: Option<&'static str>,
    /// No byte gets through, in either direction. Connections stay open, and new ones are taken.
    silent: bool,
    /// Whatever a server says from this text on does not get through. What a client says does.
    hold_answer_at: Option<&'static str>,
    /// Connections that are older than so many cuts are closed.
    cuts: usize,
    /// Connections that are older than so many losses hear nothing any more.
    losses: usize,
}

/// A wire to a server. All connections over it follow the same rules.
pub(crate) struct Wire {
    port: u16,
    rules: watch::Sender<Rules>,
    held: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// A wire to a server on this machine.
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (rules, watched) = watch::channel(Rules::default());
        let held = Arc::<AtomicI64>::default();
        let holding = Arc::clone(&held);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, server, watched.clone(), Arc::clone(&holding)));
            }
        });
        Self {
            port,
            rules,
            held,
            task,
        }
    }

    /// Where to connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From the first message with this text on, a client's words stay on the wire.
    pub(crate) fn hold_at(&self, text: &'static str) {
        self.rules.send_modify(|rules| rules.hold_at = Some(text));
    }

    /// Lets nothing through, and tells nobody.
    pub(crate) fn silence(&self) {
        self.rules.send_modify(|rules| rules.silent = true);
    }

    /// From the first answer with this text on, a server's words stay on the wire. The empty text is in all of them.
    pub(crate) fn hold_answer_at(&self, text: &'static str) {
        self.rules.send_modify(|rules| rules.hold_answer_at = Some(text));
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// No answer gets through to the connections that are there now, not even that the server has closed them. New ones are
    /// not affected.
    pub(crate) fn lose_answers(&self) {
        self.rules.send_modify(|rules| rules.losses += 1);
    }

    /// Lets through again what comes, and what was held.
    pub(crate) fn heal(&self) {
        self.rules.send_modify(|rules| {
            *rules = Rules {
                cuts: rules.cuts,
                losses: rules.losses,
                ..Rules::default()
            }
        });
    }

    /// How many connections stand still in the middle of their words, or before their first.
    pub(crate) fn held(&self) -> i64 {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(client: TcpStream, server: u16, mut rules: watch::Receiver<Rules>, held: Arc<AtomicI64>) {
    let (born, mut lost) = (rules.borrow().cuts, rules.clone());
    let heard = rules.borrow().losses;
    let (mut from_client, to_client) = client.into_split();
    if rules.borrow().silent && !wait_while(&mut rules, |r| r.silent, &mut from_client, &held).await {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (from_server, to_server) = server.into_split();
    let requests = requests(from_client, to_server, rules.clone(), &held);
    let answers = answers(from_server, to_client, rules.clone());
    let answers = async {
        let lost = async { lost.wait_for(|r| r.losses > heard).await.is_ok() };
        tokio::pin!(answers);
        tokio::select! {
            () = &mut answers => {}
            _ = lost => std::future::pending().await,
        }
    };
    tokio::select! {
        // A cut comes before whatever is let through again in the same moment.
        biased;
        _ = rules.wait_for(|r| r.cuts > born) => {}
        // Whoever closes their end closes the other's: PostgreSQL's protocol knows no half of a connection.
        () = requests => {}
        () = answers => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
    held: &AtomicI64,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let words = &buffer[..n];
        let stops = |r: &Rules| r.silent || r.hold_at.is_some_and(|text| contains(words, text));
        if stops(&rules.borrow().clone()) {
            // Until all is well again: not only until these words are.
            let stands = |r: &Rules| r.silent || r.hold_at.is_some();
            if !wait_while(&mut rules, stands, &mut from, held).await {
                return;
            }
        }
        if to.write_all(words).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut rules: watch::Receiver<Rules>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let words = &buffer[..n];
        let stops = |r: &Rules| r.silent || r.hold_answer_at.is_some_and(|text| contains(words, text));
        if stops(&rules.borrow().clone())
            && rules
                .wait_for(|r| !r.silent && r.hold_answer_at.is_none())
                .await
                .is_err()
        {
            return;
        }
        if to.write_all(words).await.is_err() {
            return;
        }
    }
}

/// Waits while the rules say so. False: the client has gone meanwhile, and its words with it.
async fn wait_while(
    rules: &mut watch::Receiver<Rules>,
    stands: impl Fn(&Rules) -> bool,
    client: &mut OwnedReadHalf,
    held: &AtomicI64,
) -> bool {
    held.fetch_add(1, Ordering::Relaxed);
    let gone = async {
        let mut byte = [0];
        while !matches!(client.peek(&mut byte).await, Ok(0) | Err(_)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    let stays = tokio::select! {
        healed = rules.wait_for(|r| !stands(r)) => healed.is_ok(),
        () = gone => false,
    };
    held.fetch_sub(1, Ordering::Relaxed);
    stays
}

fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

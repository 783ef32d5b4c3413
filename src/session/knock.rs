//! Whether a server is there at all, asked without a session, which a budget would have to count: what is said comes before a client
//! has said who it is, and any server and any pooler answers it.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};

use crate::database_url::DatabaseUrl;

/// How long a server may take to answer, and a resolver to know where it is.
const LIMIT: Duration = Duration::from_secs(5);

/// The protocol's GSSENCRequest: a server logs nothing of a client that hangs up behind it.
const QUIET: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// The protocol's SSLRequest, which poolers answer that have never heard of the other. Behind a yes, a server logs who hangs up.
const KNOWN: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The server gave none.
    #[error("{0}")]
    Silence(io::Error),
    /// It could not even be asked: its name is not known just now, or this process has too many files open.
    #[error("{0}")]
    Unasked(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
            NotFound, TimedOut, UnexpectedEof,
        };
        match error.kind() {
            ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable
            | NetworkUnreachable | NotFound | TimedOut | UnexpectedEof => Self::Silence(error),
            _ => Self::Unasked(error),
        }
    }
}

/// Waits for a sign of life.
///
/// # Errors
/// There is none.
pub(crate) async fn knock(url: &DatabaseUrl) -> Result<(), NoAnswer> {
    let mut nothing = NoAnswer::Unasked(io::ErrorKind::AddrNotAvailable.into());
    for door in doors(url).await? {
        match timeout(LIMIT, door.knock()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => nothing = error.into(),
            Err(_) => nothing = io::Error::from(io::ErrorKind::TimedOut).into(),
        }
    }
    Err(nothing)
}

/// Where a server listens.
enum Door {
    Socket(PathBuf),
    Address(SocketAddr),
}

/// All doors that a URL leads to.
async fn doors(url: &DatabaseUrl) -> Result<Vec<Door>, NoAnswer> {
    let (host, port) = (url.host(), url.port());
    if host.starts_with('/') {
        return Ok(vec![Door::Socket(format!("{host}/.s.PGSQL.{port}").into())]);
    }
    // A resolver that is silent says nothing of the server.
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let known = timeout(LIMIT, lookup_host((host.as_str(), port))).await;
    let known = known.map_err(late).and_then(|found| found);
    Ok(known.map_err(NoAnswer::Unasked)?.map(Door::Address).collect())
}

impl Door {
    async fn knock(&self) -> io::Result<()> {
        match self.ask(QUIET).await {
            Err(hung_up) if hung_up.kind() == io::ErrorKind::UnexpectedEof => self.ask(KNOWN).await,
            answer => answer,
        }
    }

    async fn ask(&self, request: [u8; 8]) -> io::Result<()> {
        match self {
            Self::Socket(path) => answer(UnixStream::connect(path).await?, request).await,
            Self::Address(address) => answer(TcpStream::connect(address).await?, request).await,
        }
    }
}

/// Yes, no, or the beginning of an error: all of them are answers.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: [u8; 8]) -> io::Result<()> {
    stream.write_all(&request).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn knock_at(address: &str) -> Result<(), NoAnswer> {
        let url = DatabaseUrl::parse(&format!("postgresql://u@{address}/d")).expect("a URL");
        knock(&url).await
    }

    #[tokio::test]
    async fn any_answer_is_a_sign_of_life_and_a_name_that_is_not_known_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            // A pooler that does not know the first question, and two guests of whom nobody wants to hear.
            for answer in [&b""[..], b"N", b"", b""] {
                let (mut guest, _) = listener.accept().await.expect("a guest");
                let mut question = [0; 8];
                guest.read_exact(&mut question).await.expect("a question");
                guest.write_all(answer).await.expect("an answer");
                asked.push(question);
            }
            asked
        });
        knock_at(&address).await.expect("a sign of life");
        let hung_up = knock_at(&address).await;
        assert!(matches!(hung_up, Err(NoAnswer::Silence(_))), "{hung_up:?}");
        assert_eq!(served.await.expect("no panic"), [QUIET, KNOWN, QUIET, KNOWN]);
        let nobody = knock_at(&address).await;
        assert!(matches!(nobody, Err(NoAnswer::Silence(_))), "{nobody:?}");
        let unknown = knock_at("herder.invalid").await;
        assert!(matches!(unknown, Err(NoAnswer::Unasked(_))), "{unknown:?}");
    }
}

//! Whether a server is there at all, asked without a session, which a budget would have to count: what is said comes before a client
//! has said who it is, and any server and any pooler answers it.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};

use crate::database_url::DatabaseUrl;

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The protocol's SSLRequest. A client that hangs up behind it is none that a server would log.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

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
    let (host, port) = (url.host(), url.port());
    let knocking = async {
        match host.starts_with('/') {
            true => answer(UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?).await,
            false => {
                let known = lookup_host((host.as_str(), port))
                    .await
                    .map_err(NoAnswer::Unasked)?;
                answer(TcpStream::connect(known.collect::<Vec<_>>().as_slice()).await?).await
            }
        }
    };
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    timeout(LIMIT, knocking).await.unwrap_or_else(|_| late())
}

/// Yes, no, or the beginning of an error: all of them are answers.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), NoAnswer> {
    stream.write_all(&REQUEST).await?;
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
            let (mut guest, _) = listener.accept().await.expect("a guest");
            let mut asked = [0; 8];
            guest.read_exact(&mut asked).await.expect("a question");
            guest.write_all(b"N").await.expect("an answer");
            // The next one is let in, and the door shut.
            drop(listener.accept().await);
            asked
        });
        knock_at(&address).await.expect("a sign of life");
        let hung_up = knock_at(&address).await;
        assert!(matches!(hung_up, Err(NoAnswer::Silence(_))), "{hung_up:?}");
        assert_eq!(served.await.expect("no panic"), REQUEST);
        let nobody = knock_at(&address).await;
        assert!(matches!(nobody, Err(NoAnswer::Silence(_))), "{nobody:?}");
        let unknown = knock_at("herder.invalid").await;
        assert!(matches!(unknown, Err(NoAnswer::Unasked(_))), "{unknown:?}");
    }
}

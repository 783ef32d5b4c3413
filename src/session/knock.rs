//! Whether a server is there at all, asked without a session, which a budget would have to count: what is said comes before a client
//! has said who it is, and any server and any pooler answers it.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::database_url::DatabaseUrl;

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The protocol's SSLRequest. A client that hangs up behind it is none that a server would log.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Waits for a sign of life.
///
/// # Errors
/// There is none.
pub(crate) async fn knock(url: &DatabaseUrl) -> io::Result<()> {
    let (host, port) = (url.host(), url.port());
    let knocking = async {
        match host.starts_with('/') {
            true => answer(UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?).await,
            false => answer(TcpStream::connect((host.as_str(), port)).await?).await,
        }
    };
    let silent = || Err(io::ErrorKind::TimedOut.into());
    timeout(LIMIT, knocking).await.unwrap_or_else(|_| silent())
}

/// Yes, no, or the beginning of an error: all of them are answers.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(&REQUEST).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(())
}

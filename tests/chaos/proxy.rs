//! A network of our own between one worker and the servers: it can break off, and it can fall silent.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the network is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Weather {
    /// Nothing gets through, and nobody is told.
    silent: bool,
    /// How many times all connections were reset.
    cuts: u64,
}

/// The links of one worker, one to each server. Gone when it is dropped.
pub(crate) struct Network {
    /// In the order of the servers.
    pub(crate) ports: Vec<u16>,
    weather: watch::Sender<Weather>,
}

impl Network {
    /// Listens for each of these ports.
    pub(crate) async fn to(servers: &[u16]) -> Self {
        let (weather, forecast) = watch::channel(Weather::default());
        let mut ports = Vec::new();
        for server in servers {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            ports.push(listener.local_addr().expect("an address").port());
            tokio::spawn(listen(listener, *server, forecast.clone()));
        }
        Self { ports, weather }
    }

    /// Resets all connections.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Lets nothing through, or lets all through again that waited.
    pub(crate) fn silence(&self, silent: bool) {
        self.weather.send_modify(|weather| weather.silent = silent);
    }
}

async fn listen(listener: TcpListener, server: u16, mut weather: watch::Receiver<Weather>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The network was dropped: nobody is left who would connect.
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if let Ok((client, _)) = accepted {
            tokio::spawn(link(client, server, weather.clone()));
        }
    }
}

async fn link(client: TcpStream, server: u16, mut weather: watch::Receiver<Weather>) {
    // Its answer would get lost as well.
    if weather.wait_for(|weather| !weather.silent).await.is_err() {
        return;
    }
    // A server that is away resets: here, too.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cuts = weather.borrow().cuts;
    let mut forecast = weather.clone();
    // The first end ends both ways: PostgreSQL knows no half-closed connection.
    tokio::select! {
        () = pump(from_client, to_server, weather.clone()) => {}
        () = pump(from_server, to_client, weather.clone()) => {}
        _ = forecast.wait_for(|weather| weather.cuts != cuts) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            // An end gets lost as well.
            let _ = weather.wait_for(|weather| !weather.silent).await;
            return;
        };
        if weather.wait_for(|weather| !weather.silent).await.is_err() {
            // The worker is gone: what it had sent may still arrive.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

//! A door in front of a server: open, shut, or with somebody in it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Cluster;

/// What becomes of who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// He gets to the server.
    Open,
    /// He is sent away at once.
    Shut,
    /// He is let in, and never gets an answer.
    Silent,
    /// He is told that the server is starting up (57P03).
    Starting,
}

/// A port of its own that leads to a server, or does not.
pub(crate) struct Door {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    way: Way,
    /// All who are in.
    guests: Vec<TcpStream>,
}

impl Door {
    /// A door to a server, open.
    pub(crate) fn to(cluster: &Cluster) -> Self {
        let url = cluster.url("postgres");
        let (_, rest) = url.split_once('@').expect("a URL with a user");
        let server = rest.split('/').next().expect("host and port").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            way: Way::Open,
            guests: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        // It ends with the process, as all threads do.
        thread::spawn(move || {
            for guest in listener.incoming().flatten() {
                let mut state = lock(&shared);
                if state.way != Way::Shut {
                    state.guests.push(guest.try_clone().expect("a socket"));
                    let (way, server) = (state.way, server.clone());
                    thread::spawn(move || receive(guest, way, &server));
                }
            }
        });
        Self { address, state }
    }

    /// Where it is: host and port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many have come since it was turned, but for those who were sent away.
    pub(crate) fn guests(&self) -> usize {
        lock(&self.state).guests.len()
    }

    /// From now on. Whoever is in is thrown out.
    pub(crate) fn turn(&self, way: Way) {
        let mut state = lock(&self.state);
        state.way = way;
        for guest in state.guests.drain(..) {
            // He may have left by himself.
            let _ = guest.shutdown(Shutdown::Both);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(mut guest: TcpStream, way: Way, server: &str) {
    match way {
        Way::Open => {
            let Ok(server) = TcpStream::connect(server) else {
                return;
            };
            let (from, to) = (guest.try_clone(), server.try_clone());
            thread::spawn(move || pass(from.expect("a socket"), server));
            pass(to.expect("a socket"), guest);
        }
        Way::Starting => {
            // First a request for TLS or the start of the session; both fit one read. No TLS here.
            let mut asked = [0; 4096];
            while let Ok(read) = guest.read(&mut asked)
                && read > 0
            {
                let is_tls_request = asked[4..8] == [4, 210, 22, 47];
                let answer: &[u8] = match is_tls_request {
                    true => b"N",
                    false => {
                        b"E\x00\x00\x00\x3eSFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
                    }
                };
                if guest.write_all(answer).is_err() || !is_tls_request {
                    return;
                }
            }
        }
        // The state keeps his socket open.
        Way::Silent | Way::Shut => {}
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

//! HTTP/1.1 with server-sent events, on the Unix socket and, when asked for, on TCP.
//!
//! | module | what it does |
//! |---|---|
//! | [`socket`] | binds the Unix socket |
//! | [`peer`] | who is at the other end, and quotas |
//! | [`token`] | the secret of TCP clients |
//! | [`io`] | bounds on reading and writing; notices clients that are gone |
//! | `routes` | from a path to an answer |
//! | `body` | bodies in both directions |
//!
//! The caller owns sockets and signals: `Server::serve` takes a listener and
//! a flag that says when to stop.

mod body;
pub mod io;
pub mod peer;
mod routes;
pub mod socket;
pub mod token;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use glm_wire::error::ErrorDetail;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, server::conn::http1};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::Http;
use crate::events;
use crate::operations::Operations;
use crate::service::Service;
use body::Bounds;
use io::{Guarded, Socket, TokioTimer};
use peer::Quotas;

pub use peer::Peer;
pub use socket::{SocketError, UnixSocket};
pub use token::{Token, TokenError};

/// Most bytes of a request line with its headers: clients need a few hundred.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Bytes that a connection reads and writes ahead.
const BUFFER_BYTES: usize = 32 << 10;
/// Pause after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection gets that finds too many open; written by hand, since nothing of it is read.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 127\r\n\r\n\
    {\"error\":{\"code\":\"overloaded\",\"type\":\"overloaded\",\"message\":\"too many connections are open; try again\",\"retry_after_ms\":1000}}\n";

/// Why a request is not done.
#[derive(Debug)]
pub struct Refusal {
    status: u16,
    detail: ErrorDetail,
    /// Method that the path takes.
    allow: Option<&'static str>,
}

impl Refusal {
    const fn with_status(status: u16, detail: ErrorDetail) -> Self {
        Self {
            status,
            detail,
            allow: None,
        }
    }
}

impl From<ErrorDetail> for Refusal {
    fn from(detail: ErrorDetail) -> Self {
        Self::with_status(detail.kind.http_status(), detail)
    }
}

/// Answers requests on connections.
#[derive(Debug)]
pub struct Server {
    service: Service,
    limits: Mutex<Arc<Http>>,
    /// Memory for bodies that are being read.
    bodies: Arc<Semaphore>,
    quotas: Quotas,
    token: Option<Token>,
    operations: Operations,
}

impl Server {
    /// A server with the bounds of `http`.
    #[must_use]
    pub fn new(
        service: Service,
        http: &Http,
        token: Option<Token>,
        operations: Operations,
    ) -> Arc<Self> {
        let bodies = http.body_bytes_total.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            service,
            limits: Mutex::new(Arc::new(http.clone())),
            bodies: Arc::new(Semaphore::new(bodies)),
            quotas: Quotas::default(),
            token,
            operations,
        })
    }

    /// Uses other bounds from now on, all but `body_bytes_total`.
    pub fn set_limits(&self, http: &Http) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(http.clone());
    }

    fn limits(&self) -> Arc<Http> {
        Arc::clone(&self.limits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn bounds(&self, limits: &Http) -> Bounds {
        Bounds {
            bytes: limits.body_bytes,
            time: Duration::from_secs(limits.body_timeout_s),
            memory: Arc::clone(&self.bodies),
        }
    }

    /// Serves a Unix socket until `stop` is true; then answers what is under way and closes.
    pub async fn serve_unix(self: Arc<Self>, socket: UnixSocket, stop: watch::Receiver<bool>) {
        let accept = async move || {
            let (stream, _) = socket.listener().accept().await?;
            let peer = Peer::local(&stream.peer_cred()?);
            Ok((stream, peer))
        };
        self.serve::<UnixStream, _>(accept, stop).await;
    }

    /// The same for a TCP socket. Clients must show the token.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: watch::Receiver<bool>) {
        let accept = async move || {
            let (stream, address) = listener.accept().await?;
            // Tokens are small and should not wait for each other.
            stream.set_nodelay(true)?;
            Ok((stream, Peer::Remote(address)))
        };
        self.serve::<TcpStream, _>(accept, stop).await;
    }

    async fn serve<S, A>(self: Arc<Self>, accept: A, mut stop: watch::Receiver<bool>)
    where
        S: Socket,
        A: AsyncFn() -> std::io::Result<(S, Peer)>,
    {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = raised(&mut stop) => break,
                accepted = accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((socket, peer)) => self.open(&mut connections, socket, peer, &stop),
                Err(reason) => {
                    events::accept_failed(&reason);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Nobody should queue where nobody accepts.
        drop(accept);
        while connections.join_next().await.is_some() {}
    }

    /// Serves a connection, or turns it away when too many are open.
    fn open<S: Socket>(
        self: &Arc<Self>,
        connections: &mut JoinSet<()>,
        socket: S,
        peer: Peer,
        stop: &watch::Receiver<bool>,
    ) {
        let most = i64::try_from(self.limits().connections).unwrap_or(i64::MAX);
        if self.service.metrics().connections() >= most {
            self.service.metrics().connection_refused();
            events::too_many_connections(&peer);
            // The kernel's buffer is empty, so it fits or the client is gone.
            let _ = socket.try_write(TOO_MANY);
            return;
        }
        events::connected(&peer);
        let counted = self.service.metrics().connection();
        let server = Arc::clone(self);
        let stop = stop.clone();
        connections.spawn(async move {
            server.converse(Arc::new(socket), peer, stop).await;
            drop(counted);
        });
    }

    /// Answers the requests of a connection, one after the other.
    async fn converse<S: Socket>(
        self: Arc<Self>,
        socket: Arc<S>,
        peer: Peer,
        mut stop: watch::Receiver<bool>,
    ) {
        let limits = self.limits();
        let patience = Duration::from_secs(limits.write_timeout_s);
        let io = Guarded::new(Arc::clone(&socket), patience);
        let answer = service_fn(|request: Request<Incoming>| {
            let server = Arc::clone(&self);
            let peer = &peer;
            async move { Ok::<_, Infallible>(server.answer(peer, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer)
            .header_read_timeout(Duration::from_secs(limits.head_timeout_s))
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(BUFFER_BYTES)
            // `gone` knows better than the end of what the client sends.
            .half_close(true)
            .serve_connection(io, answer);
        let mut connection = pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => Some(outcome),
            () = socket.gone() => None,
            () = raised(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection.as_mut() => Some(outcome),
                    () = socket.gone() => None,
                }
            }
        };
        // Dropping the connection drops the answer under way, and with it its ticket.
        match outcome {
            Some(Err(reason)) => events::disconnected(&peer, Some(&reason)),
            Some(Ok(())) | None => events::disconnected(&peer, None),
        }
    }
}

/// Returns when the flag is true, or nobody is left to raise it.
async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_connection_too_many_is_well_formed() {
        let text = std::str::from_utf8(TOO_MANY).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let told: glm_wire::ErrorBody = serde_json::from_str(body).expect("the envelope");
        assert_eq!(told.error.retry_after_ms, Some(1000));
        assert_eq!(told.error.kind, glm_wire::error::ErrorKind::Overloaded);
    }
}

//! A socket with bounds, as hyper reads and writes it, and a way to learn that the client is gone.
//!
//! hyper does not read ahead while a request is served, so it alone would not
//! notice a client that dies after it has sent the beginning of its next
//! request. [`Socket::gone`] asks the kernel instead.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// Read at once; hyper's own buffer grows by this much.
const CHUNK: usize = 8 << 10;
/// How often a client that sends no more is looked at; the kernel wakes nobody for its end.
const HALF_CLOSED: Duration = Duration::from_millis(100);

/// A stream socket that several can look at.
pub trait Socket: Send + Sync + 'static {
    /// Whether there is something to read.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Whether there is room to write.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads what is there.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what finds room.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Tells the client that nothing more comes.
    fn close_write(&self) -> io::Result<()>;
    /// Returns when the client can no longer read an answer.
    fn gone(&self) -> impl Future<Output = ()> + Send;
}

macro_rules! plain_socket {
    () => {
        fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Self::poll_read_ready(self, cx)
        }

        fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Self::poll_write_ready(self, cx)
        }

        fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
            Self::try_read(self, buffer)
        }

        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            Self::try_write(self, bytes)
        }
    };
}

impl Socket for UnixStream {
    plain_socket!();

    fn close_write(&self) -> io::Result<()> {
        socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write)
    }

    /// A Unix socket tells a client that sends no more (`shutdown`) from one that is gone (`close`).
    async fn gone(&self) {
        loop {
            // `PRIORITY` waits for nothing but the end of what the client sends.
            match self.ready(Interest::PRIORITY).await {
                Ok(state) if !state.is_write_closed() => tokio::time::sleep(HALF_CLOSED).await,
                _ => return,
            }
            match self.ready(Interest::WRITABLE).await {
                Ok(state) if !state.is_write_closed() => {}
                _ => return,
            }
        }
    }
}

impl Socket for TcpStream {
    plain_socket!();

    fn close_write(&self) -> io::Result<()> {
        socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write)
    }

    /// TCP cannot tell, so whoever closes its side is gone.
    async fn gone(&self) {
        // An error means that the socket is of no use either.
        let _ = self.ready(Interest::PRIORITY).await;
    }
}

/// A socket for hyper. A write that finds no room for `patience` fails.
#[derive(Debug)]
pub struct Guarded<S> {
    socket: Arc<S>,
    patience: Duration,
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> Guarded<S> {
    /// Bounds a socket.
    pub const fn new(socket: Arc<S>, patience: Duration) -> Self {
        Self {
            socket,
            patience,
            stalled: None,
        }
    }
}

impl<S: Socket> Read for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut chunk = [0; CHUNK];
        let wanted = buffer.remaining().min(CHUNK);
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(&mut chunk[..wanted]) {
                Ok(read) => {
                    buffer.put_slice(&chunk[..read]);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl<S: Socket> Write for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    let patience = self.patience;
                    let stalled = self
                        .stalled
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(stalled.as_mut().poll(cx));
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client does not read its answer",
                    )));
                }
            }
            match self.socket.try_write(bytes) {
                Ok(written) => {
                    self.stalled = None;
                    return Poll::Ready(Ok(written));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.close_write())
    }
}

/// hyper's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioTimer;

struct Nap(Pin<Box<tokio::time::Sleep>>);

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for Nap {}

impl Timer for TokioTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Nap>() {
            Some(mut nap) => nap.0.as_mut().reset(deadline.into()),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

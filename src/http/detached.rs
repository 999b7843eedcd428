//! Detached streams: a session that writes to its socket itself, once HTTP has nothing more to say.
//!
//! One small future per connection. It holds a session, a socket and a timer, and a batch only while the socket
//! does not take it: idle, nothing else is allocated. Invariants: bytes leave in the order in which the session
//! made them, a write that stops in the middle of a chunk goes on there; a client that takes nothing for
//! `write_timeout` is dropped, one that takes little is not; the last bytes are followed by the end of our
//! direction, and what the client still sends is read, because closing a socket with unread bytes resets the
//! connection and destroys what was written. Neighbours: `handover.rs` gets the socket, `stream.rs` does the
//! same as a body.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::handover::Parked;
use crate::session::Batch;
use crate::session::driver::{Driver, Turn};

/// After so many bytes a connection lets others go first.
const TURN_BYTES_MAX: usize = 64 * 1024;
/// Chunks of one call to the system.
const SLICES_MAX: usize = 64;
/// What a client sends on an open stream is read in pieces of this size, so many before others go first.
const SCRAP_BYTES: usize = 4 * 1024;
const SCRAPS_MAX: usize = 16;
/// How long a client has to end its direction after we ended ours.
const LINGER: Duration = Duration::from_secs(1);

pin_project! {
    /// One connection.
    pub(super) struct Detached {
        #[pin]
        driver: Driver,
        stream: TcpStream,
        stage: Stage,
    }
}

/// Where a connection stands. While it is open it has nothing to write.
enum Stage {
    /// Only the head is there; what the session has to say at once goes with it.
    Head(Box<Bytes>),
    Open,
    /// The socket does not take what is there.
    Blocked(Box<Blocked>),
    /// All is written; the client has until then to end its direction.
    Lingering(Instant),
}

struct Blocked {
    out: Out,
    /// Since when nothing has been taken.
    since: Instant,
}

impl Detached {
    pub(super) fn new(stream: TcpStream, parked: Parked) -> Self {
        let Parked { head, session } = parked;
        Self { driver: Driver::new(session), stream, stage: Stage::Head(Box::new(head)) }
    }

    fn poll_stream(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let mut batch = Batch::default();
        let mut written = 0;
        loop {
            let (mut out, mut since) = match std::mem::replace(this.stage, Stage::Open) {
                Stage::Head(head) => {
                    let turn = this.driver.as_mut().poll_turn(cx, &mut batch);
                    let chunks = std::iter::once(*head).chain(batch.take()).collect();
                    (Out::new(chunks, turn == Poll::Ready(Turn::End)), None)
                }
                Stage::Open if written >= TURN_BYTES_MAX => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Stage::Open => {
                    let turn = ready!(this.driver.as_mut().poll_turn(cx, &mut batch));
                    (Out::new(batch.take(), turn == Turn::End), None)
                }
                Stage::Blocked(blocked) => (blocked.out, Some(blocked.since)),
                Stage::Lingering(until) => {
                    *this.stage = Stage::Lingering(until);
                    return this.driver.as_mut().poll_until(cx, until).map(Ok);
                }
            };
            while !out.is_empty() {
                let Poll::Ready(count) = out.poll_write(cx, this.stream)? else {
                    let since = since.unwrap_or_else(Instant::now);
                    *this.stage = Stage::Blocked(Box::new(Blocked { out, since }));
                    let session = this.driver.session();
                    session.mailbox().register(cx.waker());
                    let give_up_at = since + session.options().write_timeout;
                    ready!(this.driver.as_mut().poll_until(cx, give_up_at));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                };
                written += count;
                since = None;
            }
            if out.is_last {
                ready!(Pin::new(&mut *this.stream).poll_shutdown(cx))?;
                *this.stage = Stage::Lingering(Instant::now() + LINGER);
            }
        }
    }
}

impl Future for Detached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.driver.session().mailbox().is_cut() {
            return Poll::Ready(());
        }
        let polled = match poll_gone(self.as_mut().project().stream, cx) {
            Poll::Ready(gone) => Poll::Ready(gone),
            Poll::Pending => self.poll_stream(cx),
        };
        polled.map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "an event stream ended with an error");
            }
        })
    }
}

/// Reads and forgets what the client sends; ready when it has ended its direction, which means that it is gone.
fn poll_gone(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(stream.poll_read_ready(cx))?;
    for _ in 0..SCRAPS_MAX {
        let mut scrap = [MaybeUninit::uninit(); SCRAP_BYTES];
        let mut scrap = ReadBuf::uninit(&mut scrap);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut scrap))?;
        if scrap.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Chunks on their way to the socket.
struct Out {
    chunks: std::vec::IntoIter<Bytes>,
    /// Nothing follows.
    is_last: bool,
}

impl Out {
    fn new(chunks: Vec<Bytes>, is_last: bool) -> Self {
        Self { chunks: chunks.into_iter(), is_last }
    }

    fn is_empty(&self) -> bool {
        self.chunks.as_slice().is_empty()
    }

    /// Writes once what fits into one call; answers how many bytes the system took.
    fn poll_write(&mut self, cx: &mut Context<'_>, stream: &mut TcpStream) -> Poll<io::Result<usize>> {
        let written = match self.chunks.as_slice() {
            [chunk] => Pin::new(stream).poll_write(cx, chunk),
            chunks => {
                let slices: SmallVec<[IoSlice<'_>; SLICES_MAX]> =
                    chunks.iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk)).collect();
                Pin::new(stream).poll_write_vectored(cx, &slices)
            }
        };
        let count = ready!(written)?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(count);
        Poll::Ready(Ok(count))
    }

    /// Drops what was written.
    fn advance(&mut self, mut count: usize) {
        while let Some(chunk) = self.chunks.as_mut_slice().first_mut() {
            if count < chunk.len() {
                chunk.advance(count);
                return;
            }
            count -= chunk.len();
            self.chunks.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What every subscriber costs, with about 100 bytes that the runtime adds to the future; see the table in
    /// `docs/performance.md`. A task is rounded up to a multiple of 128 bytes.
    #[test]
    fn a_connection_is_a_small_future() {
        assert!(size_of::<Detached>() <= 400, "{} bytes", size_of::<Detached>());
    }

    /// A socket that takes little at a time, and its other end.
    async fn narrow() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(4_096).unwrap();
        let client = client.connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&server).set_send_buffer_size(4_096).unwrap();
        (server, client)
    }

    /// Seen to fail when the offset within a chunk is forgotten, and when more than one call's chunks are dropped.
    #[tokio::test]
    async fn a_write_that_stops_anywhere_goes_on_there() {
        let (mut server, mut client) = narrow().await;
        let chunks: Vec<Bytes> =
            (0..1_000_u32).map(|n| Bytes::from(format!("{n:>width$}", width = (n % 700) as usize))).collect();
        let expected = chunks.concat();
        let mut out = Out::new(chunks, false);
        let writing = async {
            let mut written = 0;
            while !out.is_empty() {
                written += poll_fn(|cx| out.poll_write(cx, &mut server)).await.unwrap();
            }
            drop(server);
            written
        };
        let mut got = Vec::new();
        let (written, read) = tokio::join!(writing, client.read_to_end(&mut got));
        assert_eq!((written, read.unwrap()), (expected.len(), expected.len()));
        assert!(got == expected, "the bytes arrive in order, each once");
    }
}

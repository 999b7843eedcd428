//! Connections as hyper gets them: with the first bytes, which were read to tell the protocols apart, put back, and
//! given up when the client takes nothing of what is due for `write_timeout`.
//!
//! Invariant: when hyper gives a socket back, the client has been sent all that hyper wrote to it; see
//! [`Transport::into_stream`]. Neighbours: `connection.rs` makes them, `handover.rs` takes them back.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::handover::Desk;
use super::socket::{self, LINGER};

/// A TCP connection.
pub(super) struct Transport {
    stream: TokioIo<TcpStream>,
    /// What was read before; empty once hyper has it.
    begin: Vec<u8>,
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs when our direction has ended.
    lingering: Option<Pin<Box<Sleep>>>,
    /// Hears when all has been written.
    desk: Arc<Desk>,
}

impl Transport {
    pub(super) fn new(stream: TcpStream, begin: Vec<u8>, write_timeout: Duration, desk: Arc<Desk>) -> Self {
        let stream = TokioIo::new(stream);
        Self { stream, begin, write_timeout, stalled: None, lingering: None, desk }
    }

    /// The connection itself. Whatever hyper buffered is lost, so ask the desk first.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }

    /// Passes on what a write came to; one that waits for too long has failed.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begin.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.begin.len().min(buf.remaining());
        buf.put_slice(&self.begin[..count]);
        self.begin = self.begin.split_off(count);
        Poll::Ready(Ok(()))
    }
}

impl Write for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Hyper calls this when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.desk.flushed();
        Poll::Ready(Ok(()))
    }

    /// Ends our direction, then waits for the client's: a socket that is closed while a body is still on its way
    /// resets the connection, and the answer with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let transport = &mut *self;
        if transport.lingering.is_none() {
            ready!(Pin::new(&mut transport.stream).poll_shutdown(cx))?;
        }
        let until = transport.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        socket::poll_ended(transport.stream.inner_mut(), cx)
    }
}

//! Framing: how a client of HTTP/1 tells where the body of a stream ends (RFC 9112, section 6.3).
//!
//! HTTP/1.1 gets chunks, one for each batch: libraries hand a chunk on when it is there, where they would wait
//! for a full buffer of a body that is ended by its connection, and a connection that breaks is told from a stream
//! that ends. HTTP/1.0 knows no chunks. Invariants: the size that a chunk announces is the size that it has; the
//! last chunk is sent at the end of the session and never before. Neighbours: `handover.rs` chooses and announces
//! it, `detached.rs` writes.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Pieces of one call to the system.
const SLICES_MAX: usize = 64;
/// So little is copied into one piece: that costs less than it costs the system to look at several.
const COPIED_BYTES_MAX: usize = 1024;
/// Digits of a chunk's size, and the end of its line.
const SIZE_BYTES_MAX: usize = size_of::<usize>() * 2 + END_OF_LINE.len();
const END_OF_LINE: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const END_OF_LINE_AND_LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By a last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

impl Framing {
    /// What a batch becomes on the wire.
    pub(super) fn frame(self, frames: Vec<Bytes>, is_last: bool) -> Out {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let (size, end) = match (self, bytes, is_last) {
            (Self::UntilClose, _, _) | (Self::Chunked, 0, false) => (Size::none(), &b""[..]),
            (Self::Chunked, 0, true) => (Size::none(), LAST_CHUNK),
            (Self::Chunked, _, false) => (Size::of(bytes), END_OF_LINE),
            (Self::Chunked, _, true) => (Size::of(bytes), END_OF_LINE_AND_LAST_CHUNK),
        };
        Out { head: Bytes::new(), size, frames: frames.into_iter(), end, is_last, is_begun: false }
    }
}

/// The first line of a chunk, as far as it is not written yet.
struct Size {
    text: [u8; SIZE_BYTES_MAX],
    from: u8,
    to: u8,
}

impl Size {
    fn none() -> Self {
        Self { text: [0; SIZE_BYTES_MAX], from: 0, to: 0 }
    }

    fn of(bytes: usize) -> Self {
        let mut size = Self::none();
        let mut rest = &mut size.text[..];
        write!(rest, "{bytes:x}\r\n").expect("there is room for every number");
        let left = rest.len();
        size.to = u8::try_from(SIZE_BYTES_MAX - left).expect("a line is short");
        size
    }

    fn rest(&self) -> &[u8] {
        &self.text[usize::from(self.from)..usize::from(self.to)]
    }

    fn advance(&mut self, count: usize) {
        self.from += u8::try_from(count).expect("no more than the rest of a short line");
    }
}

/// Bytes on their way to the socket.
pub(super) struct Out {
    head: Bytes,
    size: Size,
    frames: std::vec::IntoIter<Bytes>,
    end: &'static [u8],
    is_last: bool,
    is_begun: bool,
}

impl Out {
    /// This head goes first.
    pub(super) fn after(mut self, head: Bytes) -> Self {
        self.head = head;
        self
    }

    /// Whether nothing follows.
    pub(super) fn is_last(&self) -> bool {
        self.is_last
    }

    /// The head alone, while nothing is written at all: what was to follow is taken back.
    pub(super) fn take_back(&mut self) -> Option<Bytes> {
        (!self.is_begun).then(|| std::mem::take(&mut self.head))
    }

    /// Whether all is written.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty()
            && self.size.rest().is_empty()
            && self.frames.as_slice().is_empty()
            && self.end.is_empty()
    }

    /// Writes once what fits into one call; answers how many bytes the system took.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.poll_write_slices(cx, stream))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_slices(&self, cx: &mut Context<'_>, stream: &mut TcpStream) -> Poll<io::Result<usize>> {
        let slices = self.slices();
        if slices.iter().map(|slice| slice.len()).sum::<usize>() > COPIED_BYTES_MAX {
            return Pin::new(stream).poll_write_vectored(cx, &slices);
        }
        let mut copy = SmallVec::<[u8; COPIED_BYTES_MAX]>::new();
        slices.iter().for_each(|slice| copy.extend_from_slice(slice));
        Pin::new(stream).poll_write(cx, &copy)
    }

    fn slices(&self) -> SmallVec<[IoSlice<'_>; SLICES_MAX]> {
        let frames = self.frames.as_slice().iter().map(|frame| &**frame);
        let pieces = [&*self.head, self.size.rest()].into_iter().chain(frames).chain([self.end]);
        pieces.filter(|piece| !piece.is_empty()).take(SLICES_MAX).map(IoSlice::new).collect()
    }

    /// Drops what was written.
    fn advance(&mut self, mut count: usize) {
        self.is_begun |= count > 0;
        let of_head = count.min(self.head.len());
        // What is written to its end is given back.
        self.head = if of_head == self.head.len() { Bytes::new() } else { self.head.slice(of_head..) };
        count -= of_head;
        let of_size = count.min(self.size.rest().len());
        self.size.advance(of_size);
        count -= of_size;
        while let Some(frame) = self.frames.as_mut_slice().first_mut() {
            if count < frame.len() {
                frame.advance(count);
                return;
            }
            count -= frame.len();
            self.frames.next();
        }
        self.end = &self.end[count..];
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

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

    fn sized(range: std::ops::Range<u32>) -> Vec<Bytes> {
        range.map(|n| Bytes::from(format!("{n:>width$}", width = (n % 700) as usize + 1))).collect()
    }

    fn chunk(frames: &[Bytes]) -> Vec<u8> {
        let body = frames.concat();
        [format!("{:X}\r\n", body.len()).to_lowercase().as_bytes(), &body, b"\r\n"].concat()
    }

    /// Seen to fail when the offset within a frame is forgotten, and when only the first frame of a call is dropped.
    #[tokio::test]
    async fn a_write_that_stops_anywhere_goes_on_there() {
        for framing in [Framing::Chunked, Framing::UntilClose] {
            let (mut server, mut client) = narrow().await;
            let (first, second) = (sized(0..1_000), sized(1_000..1_100));
            let head = Bytes::from("head".repeat(5_000));
            let expected = match framing {
                Framing::Chunked => [&head, &*chunk(&first), &chunk(&second), b"0\r\n\r\n"].concat(),
                Framing::UntilClose => [&head, &*first.concat(), &second.concat()].concat(),
            };
            let outs = [framing.frame(first, false).after(head), framing.frame(second, true)];
            let writing = async {
                let mut written = 0;
                for mut out in outs {
                    while !out.is_empty() {
                        written += poll_fn(|cx| out.poll_write(cx, &mut server)).await.unwrap();
                    }
                }
                drop(server);
                written
            };
            let mut got = Vec::new();
            let (written, read) = tokio::join!(writing, client.read_to_end(&mut got));
            assert_eq!((written, read.unwrap()), (expected.len(), expected.len()));
            assert!(got == expected, "{framing:?}: the bytes arrive in order, each once");
        }
    }

    /// Every place at which the system may stop. Seen to fail with a size that is written again.
    #[test]
    fn what_is_left_begins_where_what_is_written_ends() {
        let frames = [Bytes::from_static(b"one\n\n"), Bytes::from_static(b"another\n\n")];
        let expected = b"head\r\n\r\ne\r\none\n\nanother\n\n\r\n0\r\n\r\n";
        for step in 1..=expected.len() {
            let head = Bytes::from_static(b"head\r\n\r\n");
            let mut out = Framing::Chunked.frame(frames.to_vec(), true).after(head);
            let mut written = Vec::new();
            while !out.is_empty() {
                let rest = [&*out.head, out.size.rest(), &out.frames.as_slice().concat(), out.end].concat();
                let count = step.min(rest.len());
                written.extend_from_slice(&rest[..count]);
                assert!(written.len() <= expected.len(), "something is written twice by {step}");
                out.advance(count);
            }
            assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(expected), "by {step}");
        }
    }

    /// Seen to fail with a batch that counts as begun from the start, and with one that never does.
    #[test]
    fn what_is_not_begun_can_be_taken_back_but_for_the_head() {
        let batch = || Framing::Chunked.frame(sized(0..3), false).after(Bytes::from_static(b"head"));
        assert_eq!(batch().take_back().as_deref(), Some(&b"head"[..]));
        let mut begun = batch();
        begun.advance(1);
        assert_eq!(begun.take_back(), None);
    }

    /// Nothing but the end of the session may look like the last chunk. Seen to fail with a chunk of no bytes.
    #[test]
    fn a_batch_without_bytes_is_no_chunk_and_an_end_is_one() {
        assert!(Framing::Chunked.frame(vec![], false).is_empty());
        assert!(Framing::Chunked.frame(vec![Bytes::new()], false).end.is_empty());
        assert_eq!(Framing::Chunked.frame(vec![], true).end, b"0\r\n\r\n");
        assert!(Framing::UntilClose.frame(vec![], true).is_empty());
        assert_eq!(Size::of(usize::MAX).rest(), format!("{:x}\r\n", usize::MAX).as_bytes());
    }
}

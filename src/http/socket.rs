//! Sockets: how the kernel is asked to treat a connection, so that a peer that is gone, or takes nothing, is
//! noticed and costs little until then.
//!
//! Without this a peer that vanished without a word (a dead battery, a pulled cable, a gateway that forgot the
//! connection) would be kept for a quarter of an hour after the first unanswered heartbeat, or for ever where
//! nothing is due, and a reader that stands still would fill megabytes of the kernel's memory. Invariant: a
//! peer that acknowledges nothing, and a reader that takes nothing, is gone after `write_timeout`; one that
//! takes its time is not.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that the kernel holds for a connection before they are sent. A socket counts as writable again when
/// half of them are gone, so this is also how fine the progress of a slow reader is seen: by default the kernel
/// would wait for a third of several megabytes.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// The kernel counts keep-alives in whole seconds.
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);
/// Questions of a silent peer within `write_timeout`.
const KEEPALIVE_PROBES: u32 = 3;

/// How long a client has to end its direction after we ended ours.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// What nobody needs of what a client sends is read in pieces of this size, so many before others go first.
const SCRAP_BYTES: usize = 4 * 1024;
const SCRAPS_MAX: usize = 16;

/// Reads and forgets what the client sends; ready when it has ended its direction.
pub(super) fn poll_ended(socket: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(socket.poll_read_ready(cx))?;
    for _ in 0..SCRAPS_MAX {
        let mut scrap = [MaybeUninit::uninit(); SCRAP_BYTES];
        let mut scrap = ReadBuf::uninit(&mut scrap);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut scrap))?;
        if scrap.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Prepares an accepted socket. What this system cannot do is left out: the timers of the connection remain.
pub(super) fn prepare(socket: &TcpStream, write_timeout: Duration) {
    if let Err(error) = set(&SockRef::from(socket), write_timeout) {
        tracing::debug!(%error, "a socket option is not available");
    }
}

fn set(socket: &SockRef<'_>, write_timeout: Duration) -> io::Result<()> {
    // Events are small and due now.
    socket.set_tcp_nodelay(true)?;
    // Asked after a while of silence in both directions, as between heartbeats or in the middle of a body.
    let keepalive = TcpKeepalive::new()
        .with_time(write_timeout.max(KEEPALIVE_MIN))
        .with_interval((write_timeout / KEEPALIVE_PROBES).max(KEEPALIVE_MIN))
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    set_on_linux(socket, write_timeout)
}

#[cfg(target_os = "linux")]
fn set_on_linux(socket: &SockRef<'_>, write_timeout: Duration) -> io::Result<()> {
    // Unacknowledged, or unsent to a closed window, for so long (tcp(7), TCP_USER_TIMEOUT).
    socket.set_tcp_user_timeout(Some(write_timeout))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

#[cfg(not(target_os = "linux"))]
fn set_on_linux(_socket: &SockRef<'_>, _write_timeout: Duration) -> io::Result<()> {
    Ok(())
}

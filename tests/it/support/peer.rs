//! Peers that do what no well-meant library lets one do: send half of something, end one direction, reset, and
//! vanish without a word.

use std::net::SocketAddr;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::until::within;

/// `BPF_RET | BPF_K` of 0: nothing that arrives is let through (`socket(7)`, `SO_ATTACH_FILTER`).
const DROP_EVERYTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// A connection whose bytes the test writes itself.
pub(crate) struct Peer {
    socket: TcpStream,
}

impl Peer {
    /// Connects and says nothing.
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let socket = within("the broker accepts a connection", TcpStream::connect(addr)).await;
        Self { socket: socket.expect("the broker accepts a connection") }
    }

    /// Connects and sends these bytes.
    pub(crate) async fn sending(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut peer = Self::connect(addr).await;
        assert!(peer.send(bytes).await, "the broker hung up on the first bytes");
        peer
    }

    /// Sends bytes; false when the broker has hung up.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within("the broker takes bytes", self.socket.write_all(bytes.as_ref())).await.is_ok()
    }

    /// Reads until `end` has come; answers all that was read.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        let reading = async {
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains(end) {
                let read = self.socket.read_buf(&mut seen).await;
                let so_far = String::from_utf8_lossy(&seen);
                assert!(
                    read.is_ok_and(|length| length > 0),
                    "the broker hung up before {end:?}, after {so_far:?}"
                );
            }
            String::from_utf8_lossy(&seen).into_owned()
        };
        within(&format!("{end:?} comes"), reading).await
    }

    /// Reads until the broker hangs up; answers all that was read. A reset is an end, too.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut seen = Vec::new();
        let _ = within("the broker hangs up", self.socket.read_to_end(&mut seen)).await;
        seen
    }

    /// Ends the direction to the broker, as `shutdown(2)` with `SHUT_WR` does.
    pub(crate) async fn end_sending(&mut self) {
        self.socket.shutdown().await.expect("an open connection can be ended");
    }

    /// Ends the connection with a reset, as a crashed client's machine does.
    pub(crate) fn reset(self) {
        reset(&self.socket);
    }

    /// From now on the kernel throws away whatever the broker sends, and answers nothing.
    pub(crate) fn vanish(&self) {
        vanish(&self.socket);
    }
}

/// What closes the socket next sends a reset.
pub(crate) fn reset(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)).expect("a socket takes SO_LINGER");
}

/// From now on nothing that is sent to this socket arrives, not even for the kernel to acknowledge it.
pub(crate) fn vanish(socket: &TcpStream) {
    SockRef::from(socket).attach_filter(&[DROP_EVERYTHING]).expect("a socket takes SO_ATTACH_FILTER");
}

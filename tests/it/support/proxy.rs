//! A bad network: a TCP proxy between a broker and Redis, or between a client and a broker, that cuts (also right
//! behind given bytes), resets, stalls, slows down, closes one direction or loses answers when a test says so.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the network does with every connection, from the next bytes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Nothing passes in either direction; connections stay open.
    Stall,
    /// New connections are closed at once; see [`Proxy::cut`] for those that are open.
    Refuse,
    /// Passes a piece of this many bytes per direction every few milliseconds.
    Slow(usize),
    /// What the server answers is lost; requests pass.
    LoseAnswers,
    /// The server's side ends its direction; requests pass.
    HalfClose,
}

/// How long a slow connection rests between two pieces.
const REST: Duration = Duration::from_millis(5);

/// What the network holds of a connection in either direction, beside what the senders' kernels keep. Left to itself,
/// the kernel lets a buffer that was read fast for a moment grow to tens of megabytes, and what should be stalled is
/// all taken.
const HELD_BYTES: u32 = 256 * 1024;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The proxy; its connections end when it is dropped.
pub(crate) struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    toll: Arc<Toll>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
struct Network {
    mode: Mode,
    /// Where new connections lead.
    port: u16,
    /// Connections of an earlier generation are cut.
    generation: u64,
    /// The cut is a reset (RFC 9293, 3.5.2), which tells the peer that it is no regular end.
    reset: bool,
}

/// What answers pay on their way.
#[derive(Default)]
struct Toll {
    /// Bytes that were lost.
    lost: AtomicU64,
    /// Connections so far.
    connections: AtomicU64,
    blade: Mutex<Option<Blade>>,
}

/// Where connections are cut.
struct Blade {
    /// Right behind this.
    text: Vec<u8>,
    /// Younger connections are spared.
    youngest: u64,
    /// So many more.
    cuts_left: usize,
}

impl Proxy {
    /// A proxy on a free loopback port that passes on to `port`.
    pub(crate) fn to(port: u16) -> Self {
        let socket = narrow_socket().expect("a socket");
        // Accepted connections inherit the buffer.
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free loopback port");
        let listener = socket.listen(BACKLOG).expect("a bound socket can listen");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (network, watching) =
            watch::channel(Network { mode: Mode::Pass, port, generation: 0, reset: false });
        let toll = Arc::new(Toll::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, watching, toll.clone()));
        Self { addr, network, toll, _tasks: tasks }
    }

    /// Where to connect.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `--redis` takes.
    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Changes what happens to every connection, open ones included.
    pub(crate) fn set(&self, mode: Mode) {
        self.network.send_modify(|network| network.mode = mode);
    }

    /// Leads to another server from now on, as an address that moves at a failover; open connections are cut.
    pub(crate) fn lead_to(&self, port: u16) {
        self.network.send_modify(|network| network.port = port);
        self.cut();
    }

    /// Closes every open connection; what was under way is lost.
    pub(crate) fn cut(&self) {
        self.end_all(false);
    }

    /// [`Proxy::cut`], so that nobody can take it for a regular end.
    pub(crate) fn reset(&self) {
        self.end_all(true);
    }

    fn end_all(&self, reset: bool) {
        self.network.send_modify(|network| {
            network.generation += 1;
            network.reset = reset;
        });
    }

    /// Closes the next `connections` over which the server sends `text` right behind it. See [`Proxy::cuts_left`].
    pub(crate) fn cut_behind(&self, text: &str, connections: usize) {
        self.toll.arm(text, u64::MAX, connections);
    }

    /// The same for those that are open, each once; connections to come are spared.
    pub(crate) fn cut_open_behind(&self, text: &str) {
        self.toll.arm(text, self.toll.connections.load(Ordering::Relaxed), usize::MAX);
    }

    /// How many of the connections of [`Proxy::cut_behind`] are still to be cut.
    pub(crate) fn cuts_left(&self) -> usize {
        self.toll.blade.lock().as_ref().map_or(0, |blade| blade.cuts_left)
    }

    /// Bytes of answers that were lost so far.
    pub(crate) fn answers_lost(&self) -> u64 {
        self.toll.lost.load(Ordering::Relaxed)
    }
}

impl Toll {
    fn arm(&self, text: &str, youngest: u64, cuts_left: usize) {
        *self.blade.lock() = Some(Blade { text: text.into(), youngest, cuts_left });
    }

    /// Where in `piece`, which follows `seen`, this connection is to be cut; keeps in `seen` what may be its beginning.
    fn cut(&self, connection: u64, seen: &mut Vec<u8>, piece: &[u8]) -> Option<usize> {
        let mut armed = self.blade.lock();
        let blade = armed.as_mut().filter(|blade| connection <= blade.youngest)?;
        let before = seen.len();
        seen.extend_from_slice(piece);
        let found = seen.windows(blade.text.len()).position(|window| window == blade.text);
        let end = found.map(|at| at + blade.text.len() - before);
        seen.drain(..seen.len() - (blade.text.len() - 1).min(seen.len()));
        if end.is_some() {
            blade.cuts_left -= 1;
            if blade.cuts_left == 0 {
                *armed = None;
            }
        }
        end
    }
}

/// A socket that receives no more than [`HELD_BYTES`] ahead of who reads.
fn narrow_socket() -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(HELD_BYTES)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, network: watch::Receiver<Network>, toll: Arc<Toll>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if network.borrow().mode != Mode::Refuse {
            connections.spawn(connect(client, network.clone(), toll.clone()));
        }
    }
}

async fn connect(mut client: TcpStream, mut network: watch::Receiver<Network>, toll: Arc<Toll>) {
    let Network { port, generation, .. } = *network.borrow();
    let number = toll.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let Ok(socket) = narrow_socket() else { return };
    let Ok(mut server) = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let requests = pump(from_client, to_server, network.clone(), None);
    let answers = pump(from_server, to_client, network.clone(), Some((&toll, number)));
    let both = async {
        let (mut requests, mut answers) = (pin!(requests), pin!(answers));
        tokio::select! {
            end = &mut answers => if end == End::Regular { requests.await; },
            _ = &mut requests => { answers.await; },
        }
    };
    // Dropping both sockets is the cut.
    let reset = tokio::select! {
        () = both => false,
        network = network.wait_for(|network| network.generation != generation) => network.is_ok_and(|n| n.reset),
    };
    if reset {
        // Fails only for a connection that is gone already.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// How a direction came to its end.
#[derive(PartialEq, Eq)]
enum End {
    Regular,
    /// See [`Proxy::cut_behind`].
    Cut,
}

/// Passes bytes on in one direction until it ends; `answers` marks the direction that can lose them, and names the
/// connection.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
    answers: Option<(&Toll, u64)>,
) -> End {
    let mut buffer = vec![0; 16 * 1024];
    let mut seen = Vec::new();
    let generation = network.borrow().generation;
    loop {
        let Ok(network_now) = network.wait_for(|network| network.mode != Mode::Stall).await.map(|n| n.mode)
        else {
            return End::Regular;
        };
        if network_now == Mode::HalfClose && answers.is_some() {
            break;
        }
        let piece = if let Mode::Slow(bytes) = network_now { bytes } else { buffer.len() };
        let read = tokio::select! {
            read = from.read(&mut buffer[..piece]) => read,
            _ = network.changed() => continue,
        };
        let Ok(length @ 1..) = read else { break };
        let mode = match network.wait_for(|network| network.mode != Mode::Stall).await.map(|network| *network)
        {
            Ok(network) if network.generation == generation => network.mode,
            // What was read before the cut must not pass in the mode that was set after it.
            Ok(_) => std::future::pending().await,
            Err(_) => return End::Regular,
        };
        match (answers, mode) {
            (Some((toll, _)), Mode::LoseAnswers) => {
                toll.lost.fetch_add(length as u64, Ordering::Relaxed);
                continue;
            }
            (_, Mode::Slow(_)) => tokio::time::sleep(REST).await,
            _ => {}
        }
        let cut = answers.and_then(|(toll, number)| toll.cut(number, &mut seen, &buffer[..length]));
        if to.write_all(&buffer[..cut.unwrap_or(length)]).await.is_err() {
            break;
        }
        if cut.is_some() {
            return End::Cut;
        }
    }
    // The other direction goes on; its peer's end is what it still waits for.
    let _ = to.shutdown().await;
    End::Regular
}

#[cfg(test)]
mod tests {
    use super::super::until::{until, within};
    use super::*;

    /// A server that answers each byte with the next one, and the proxy before it.
    async fn counting_server() -> (JoinSet<()>, Proxy) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                clients.spawn(async move {
                    while let Ok(byte) = socket.read_u8().await {
                        socket.write_u8(byte + 1).await.unwrap();
                    }
                });
            }
        });
        (server, Proxy::to(port))
    }

    async fn ask(client: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        client.write_u8(byte).await?;
        within("an answer or an end", client.read_u8()).await
    }

    #[tokio::test]
    async fn each_mode_does_to_the_network_what_it_says() {
        let (_server, proxy) = counting_server().await;
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut client, 1).await.unwrap(), 2);

        proxy.set(Mode::Stall);
        let stalled = tokio::time::timeout(Duration::from_millis(100), ask(&mut client, 2)).await;
        assert!(stalled.is_err(), "nothing passes");
        proxy.set(Mode::Slow(1));
        assert_eq!(
            client.read_u8().await.unwrap(),
            3,
            "what was under way comes when the network moves again"
        );

        proxy.set(Mode::LoseAnswers);
        client.write_u8(3).await.unwrap();
        until("the answer is lost", async || (proxy.answers_lost() == 1).then_some(())).await;
        proxy.set(Mode::Pass);
        assert_eq!(ask(&mut client, 7).await.unwrap(), 8, "only that answer was lost");

        proxy.set(Mode::HalfClose);
        assert!(ask(&mut client, 9).await.is_err(), "the answers have ended");

        proxy.set(Mode::Pass);
        let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut second, 1).await.unwrap(), 2);
        proxy.cut();
        assert!(ask(&mut second, 1).await.is_err(), "the connection was cut");

        proxy.set(Mode::Refuse);
        let refused = async {
            let mut third = TcpStream::connect(proxy.addr()).await?;
            ask(&mut third, 1).await
        };
        assert!(refused.await.is_err(), "new connections are refused");
    }

    #[tokio::test]
    async fn a_connection_is_cut_right_behind_the_bytes_that_were_named_and_no_more_often() {
        let (_server, proxy) = counting_server().await;
        proxy.cut_behind("cde", 1);
        let mut cut = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut cut, b'c').await.unwrap(), b'd', "that begins elsewhere");
        for byte in b"bc" {
            assert_eq!(ask(&mut cut, *byte).await.unwrap(), byte + 1);
        }
        assert_eq!(proxy.cuts_left(), 1);
        cut.write_all(b"def").await.unwrap();
        let mut rest = Vec::new();
        within("the cut", cut.read_to_end(&mut rest)).await.unwrap();
        assert_eq!((rest.as_slice(), proxy.cuts_left()), (&b"e"[..], 0), "the end came as a regular one");

        let mut old = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut old, 1).await.unwrap(), 2);
        proxy.cut_open_behind("cde");
        let mut kept = TcpStream::connect(proxy.addr()).await.unwrap();
        for byte in b"bcde" {
            assert_eq!(ask(&mut kept, *byte).await.unwrap(), byte + 1);
        }
        old.write_all(b"bcd").await.unwrap();
        let mut rest = Vec::new();
        within("the cut", old.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"cde", "it was open before");

        proxy.reset();
        let error = within("the reset", kept.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

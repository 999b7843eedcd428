//! A bad network: a TCP proxy between a broker and Redis, or between a client and a broker, that cuts, stalls,
//! slows down, closes one direction or loses answers when a test says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
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

/// The proxy; its connections end when it is dropped.
pub(crate) struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    answers_lost: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
struct Network {
    mode: Mode,
    /// Where new connections lead.
    port: u16,
    /// Connections of an earlier generation are cut.
    generation: u64,
}

impl Proxy {
    /// A proxy on a free loopback port that passes on to `port`.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free loopback port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (network, watching) = watch::channel(Network { mode: Mode::Pass, port, generation: 0 });
        let answers_lost = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, watching, answers_lost.clone()));
        Self { addr, network, answers_lost, _tasks: tasks }
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
        self.network
            .send_modify(|network| (network.port, network.generation) = (port, network.generation + 1));
    }

    /// Closes every open connection; what was under way is lost.
    pub(crate) fn cut(&self) {
        self.network.send_modify(|network| network.generation += 1);
    }

    /// Bytes of answers that were lost so far.
    pub(crate) fn answers_lost(&self) -> u64 {
        self.answers_lost.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, network: watch::Receiver<Network>, lost: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if network.borrow().mode != Mode::Refuse {
            connections.spawn(connect(client, network.clone(), lost.clone()));
        }
    }
}

async fn connect(client: TcpStream, mut network: watch::Receiver<Network>, lost: Arc<AtomicU64>) {
    let Network { port, generation, .. } = *network.borrow();
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = pump(from_client, to_server, network.clone(), None);
    let answers = pump(from_server, to_client, network.clone(), Some(lost));
    tokio::select! {
        _ = async { tokio::join!(requests, answers) } => {}
        // Dropping both sockets is the cut.
        _ = network.wait_for(|network| network.generation != generation) => {}
    }
}

/// Passes bytes on in one direction until it ends; `answers` marks the direction that can lose them.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    answers: Option<Arc<AtomicU64>>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(network_now) = network.wait_for(|network| network.mode != Mode::Stall).await.map(|n| n.mode)
        else {
            return;
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
        let mode = match network.wait_for(|network| network.mode != Mode::Stall).await {
            Ok(network) => network.mode,
            Err(_) => return,
        };
        match (&answers, mode) {
            (Some(lost), Mode::LoseAnswers) => {
                lost.fetch_add(length as u64, Ordering::Relaxed);
                continue;
            }
            (_, Mode::Slow(_)) => tokio::time::sleep(REST).await,
            _ => {}
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    // The other direction goes on; its peer's end is what it still waits for.
    let _ = to.shutdown().await;
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
        (server, Proxy::to(port).await)
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
}

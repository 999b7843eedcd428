//! A broker that publishes all the while, clients that people use, and networks between that are harmed: the proof
//! that every client gets exactly what was published, in order, once.

use std::net::SocketAddr;

use futures_util::future::join_all;

use super::broker::{Broker, Store};
use super::client::{Client, Library, Told};
use super::load::read_log;
use super::proxy::{Mode, Proxy};
use super::publishing::Publishing;
use super::reverse_proxy::{ReverseProxy, Setup};
use super::sse::Subscribe;
use super::until::until;

/// Events are published to all but the last, which is for the event after which nothing was published.
const CHANNELS: [&str; 3] = ["a", "b/c", "fence"];

/// Streams beside the clients'.
const OTHER_STREAMS: usize = 2;

/// How long clients are told to wait before they come back.
const RETRY_MS: u64 = 100;

/// What happens to the connections of all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// They end somewhere.
    Cut(Side),
    /// They end with an error.
    Reset(Side),
    /// They end within an event, behind its id and one and a half of its lines.
    CutWithinAnEvent(Side),
    /// Nothing is there for a while.
    Refuse(Side),
    /// The broker has too many streams: it says so and ends them.
    Overload,
    /// The broker cannot be reached until every client was told so, by the reverse proxy.
    Absence,
    /// The broker is killed, and started again on its port.
    Restart,
}

/// Where it happens. Without a reverse proxy both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Before the reverse proxy.
    Clients,
    /// Behind it.
    Broker,
}

/// The clients, the networks, the reverse proxy if there is one, and the broker.
pub(crate) struct Scene {
    /// Where the clients connect.
    near: Proxy,
    reverse: Option<(ReverseProxy, Proxy)>,
    clients: Vec<Client>,
    broker: Broker,
    news: Publishing,
}

impl Scene {
    /// Begins to publish and lets every client connect.
    pub(crate) async fn open(store: Store, libraries: &[Library], reverse: Option<Setup>) -> Self {
        let mut clients = join_all(libraries.iter().map(|library| Client::start(*library))).await;
        let origins: Vec<&str> =
            clients.iter().map(|c| c.origin.as_str()).filter(|o| !o.is_empty()).collect();
        let streams = clients.len() + OTHER_STREAMS;
        let setup = Broker::on(store).await.set("cors.allowed_origins", &format!("{origins:?}"));
        let setup = setup.set("sse.retry", &format!("{RETRY_MS}ms")).set("sse.heartbeat_interval", "50ms");
        let setup = setup.set("fanout.ring_events", "16").set("limits.connections_max", &streams.to_string());
        let broker = setup.set("retention.max_length", "100000").start().await;
        let mut nearest: SocketAddr = broker.addr;
        let reverse = match reverse {
            Some(setup) => {
                let far = Proxy::to(broker.addr.port());
                let reverse = setup.start(&[far.addr()]).await;
                nearest = reverse.addr;
                Some((reverse, far))
            }
            None => None,
        };
        let near = Proxy::to(nearest.port());
        let cursor = broker.http.cursor(&CHANNELS.join(",")).await;
        let news = Publishing::start(broker.addr, &CHANNELS[..2]);
        // The first connection breaks before the first event: what the URL names is all that a client has. (Within the
        // head Chromium would miss `Access-Control-Allow-Origin`, and give up.)
        near.cut_behind(&format!("retry: {RETRY_MS}\n"), clients.len());
        for client in &mut clients {
            client.subscribe(&format!("http://{}", near.addr()), &CHANNELS, &cursor).await;
        }
        let mut scene = Self { near, reverse, clients, broker, news };
        scene.get_on(&vec![(0, 0); libraries.len()]).await;
        scene
    }

    /// Harms every client, and waits until each is back and receives.
    pub(crate) async fn harm(&mut self, harm: Harm) {
        let progress = self.progress();
        match harm {
            Harm::Cut(side) => self.network(side).cut(),
            Harm::Reset(side) => self.network(side).reset(),
            Harm::CutWithinAnEvent(side) => self.cut_within_an_event(side).await,
            Harm::Refuse(side) => {
                self.network(side).set(Mode::Refuse);
                self.network(side).cut();
                self.news_come().await;
                self.network(side).set(Mode::Pass);
            }
            Harm::Overload => self.overload().await,
            Harm::Absence => {
                let refusals = self.refusals("unavailable");
                self.network(Side::Broker).set(Mode::Refuse);
                self.network(Side::Broker).cut();
                self.are_refused("unavailable", &refusals, 1).await;
                self.news_come().await;
                self.network(Side::Broker).set(Mode::Pass);
            }
            Harm::Restart => {
                self.broker.kill9();
                self.broker.restart().await;
            }
        }
        self.get_on(&progress).await;
    }

    /// Lets every client catch up, and proves what it got.
    pub(crate) async fn prove(self) {
        let Self { near: _near, reverse: _reverse, clients, broker, news } = self;
        let ledger = news.stop().await;
        let (log, fence) = read_log(broker.addr, &CHANNELS[..2]).await;
        ledger.check(&log[..log.len() - 1]).unwrap_or_else(|why| panic!("{why}"));
        join_all(clients.into_iter().map(async |mut client| {
            client.proves(&log, &fence).await;
            client.close().await;
        }))
        .await;
    }

    fn network(&self, side: Side) -> &Proxy {
        match (&self.reverse, side) {
            (Some((_, far)), Side::Broker) => far,
            _ => &self.near,
        }
    }

    async fn cut_within_an_event(&self, side: Side) {
        let mark = format!("line that breaks off {}", self.news.ledger().acknowledged());
        self.network(side).cut_open_behind(&mark);
        let data = format!("a first line\na second {mark} goes on\na third line");
        let receipt = self.broker.http.publish(CHANNELS[0], data.as_str()).await;
        self.news.ledger().acknowledge(&data, &receipt.id);
    }

    /// Takes the clients' places, lets each hear twice that there is none, and leaves.
    async fn overload(&mut self) {
        self.near.set(Mode::Refuse);
        self.near.cut();
        let mut others = Vec::new();
        while others.len() < self.clients.len() + OTHER_STREAMS {
            let other = until("the clients' streams are noticed to be gone", async || {
                let mut other = Subscribe::to(&[]).open(self.broker.addr).await;
                (other.next().await?.kind == "connected").then_some(other)
            });
            others.push(other.await);
        }
        let refusals = self.refusals("overloaded");
        self.near.set(Mode::Pass);
        self.are_refused("overloaded", &refusals, 2).await;
        self.news_come().await;
    }

    /// How often each client was told, for this reason, that there is no stream for it now.
    fn refusals(&self, reason: &str) -> Vec<usize> {
        self.clients.iter().map(|client| client.told(|told| told.refusals(reason))).collect()
    }

    /// Waits until every client was told so, as many times more.
    async fn are_refused(&mut self, reason: &str, since: &[usize], times: usize) {
        for (client, before) in self.clients.iter_mut().zip(since) {
            let is_told = |told: &Told| (told.refusals(reason) >= before + times).then_some(());
            client.tells("that it was refused", is_told).await;
        }
    }

    /// Connections that each client began, and events that it received.
    fn progress(&self) -> Vec<(usize, usize)> {
        let progress = |told: &Told| (told.recorder.connections(), told.recorder.received());
        self.clients.iter().map(|client| client.told(progress)).collect()
    }

    /// Waits until every client has a new connection and receives.
    async fn get_on(&mut self, since: &[(usize, usize)]) {
        for (client, (connections, received)) in self.clients.iter_mut().zip(since) {
            let is_back = |told: &Told| {
                let on = told.recorder.connections() > *connections && told.recorder.received() > *received;
                on.then_some(())
            };
            client.tells("that it is back", is_back).await;
        }
    }

    /// Waits until something was published.
    async fn news_come(&self) {
        let before = self.news.ledger().acknowledged();
        until("events are published", async || (self.news.ledger().acknowledged() > before).then_some(()))
            .await;
    }
}

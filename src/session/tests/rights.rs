//! Rights that end: in random worlds tokens expire and are revoked at any moment of a replay, of a read that is
//! under way, and of an opening, and nothing is delivered after.
//!
//! Every connection follows the order of `http/subscribe.rs`: identify, parse, open, look again.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::*;
use crate::auth::mint::{Order, mint};
use crate::auth::revocation::{Revocation, Target};
use crate::auth::{Access, Algorithm, Granted, KeySet, KeyStore, Rejection, TokenPolicy, Tokens};
use crate::fanout::pages::{HeadRequest, Heads};
use crate::log::LogError;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const START_MS: u64 = 1_700_000_000_000;
const CHANNELS: [&str; 3] = ["a", "b", "c"];
const WORLDS: u64 = 24;
const TURNS: usize = 300;

/// A token that the model knows everything about.
#[derive(Clone)]
struct Issued {
    token: String,
    jti: String,
    sub: String,
    ends_at_ms: u64,
    channels: BTreeSet<&'static str>,
}

struct Connection {
    session: Session,
    of: Issued,
    under_way: Option<Vec<HeadRequest>>,
    answered: Option<Result<Heads, LogError>>,
    ended: bool,
}

struct World {
    node: Node,
    access: Access,
    rng: StdRng,
    now_ms: u64,
    /// Targets that are revoked, for ever.
    revoked: BTreeSet<String>,
    issued: Vec<Issued>,
    connections: Vec<Connection>,
    cursors: Vec<StreamId>,
    delivered: usize,
    ends: usize,
}

impl World {
    async fn new(rng: StdRng) -> Self {
        let keys = KeySet::of_secret(SECRET, &[]).unwrap();
        let policy = TokenPolicy { lifetime_max: Duration::from_secs(3_600), ..TokenPolicy::default() };
        let tokens = Tokens { keys: KeyStore::Fixed(parking_lot::RwLock::new(Arc::new(keys))), policy };
        Self {
            // Rings of one frame: nearly everything is replay.
            node: Node::new(1, Retention { max_length: None, max_age: None }).await,
            access: Access::guarded(Vec::new(), Some(tokens), Vec::new()),
            rng,
            now_ms: START_MS,
            revoked: BTreeSet::new(),
            issued: Vec::new(),
            connections: Vec::new(),
            cursors: vec![StreamId::ZERO],
            delivered: 0,
            ends: 0,
        }
    }

    /// What the model says of a token now.
    fn reason(&self, of: &Issued) -> Option<&'static str> {
        if self.now_ms >= of.ends_at_ms {
            return Some("token_expired");
        }
        let is_revoked = self.revoked.contains(&of.jti) || self.revoked.contains(&of.sub);
        is_revoked.then_some("revoked")
    }

    fn moment(&self) -> Now {
        Now { unix_ms: self.now_ms, ..now() }
    }

    fn issue(&mut self) {
        let channels: BTreeSet<&'static str> =
            CHANNELS.into_iter().filter(|_| self.rng.random_bool(0.6)).collect();
        let ttl = Duration::from_secs(self.rng.random_range(1..20));
        let order = Order {
            sub: Some(format!("user {}", self.rng.random_range(0..3))),
            jti: format!("token {}", self.issued.len()),
            ttl,
            granted: Granted {
                subscribe: channels.iter().map(|name| (*name).to_owned()).collect(),
                ..Granted::default()
            },
            issuer: None,
            audience: None,
        };
        let token = mint(SECRET, Algorithm::HS256, &order, self.now_ms).unwrap();
        let ends_at_ms = (self.now_ms / 1_000 + ttl.as_secs()) * 1_000;
        let (jti, sub) = (order.jti, order.sub.unwrap());
        self.issued.push(Issued { token, jti, sub, ends_at_ms, channels });
    }

    /// As `Controller::apply` does it: first refuse, then end what is open.
    fn revoke(&mut self) {
        let Some(of) = self.some_token() else { return };
        let (text, target) = if self.rng.random_bool(0.5) {
            (of.jti.clone(), Target::Token(of.jti.as_str().into()))
        } else {
            (of.sub.clone(), Target::Subject(of.sub.as_str().into()))
        };
        self.revoked.insert(text);
        self.access.revocations.put(Revocation { target: target.clone(), until_ms: u64::MAX }, self.now_ms);
        self.node.hub.close_of(|caller| target.matches(caller), ClosingReason::Revoked);
    }

    fn some_token(&mut self) -> Option<Issued> {
        if self.issued.is_empty() {
            return None;
        }
        let newest = self.issued.len().saturating_sub(4);
        let at = self.rng.random_range(newest..self.issued.len());
        Some(self.issued[at].clone())
    }

    async fn connect(&mut self) {
        let Some(of) = self.some_token() else { return };
        let found = self.access.identify(Some(&of.token), self.now_ms).await;
        match (self.reason(&of), &found) {
            (None, Ok(_)) => {}
            (Some("token_expired"), Err(Rejection::Expired(_)))
            | (Some("revoked"), Err(Rejection::Revoked)) => return,
            (reason, found) => panic!("{reason:?}, but {found:?}"),
        }
        let caller = found.unwrap();
        let channels: Vec<Channel> = CHANNELS.iter().map(|name| Channel::parse(name).unwrap()).collect();
        for channel in &channels {
            assert_eq!(caller.may_subscribe(channel), of.channels.contains(channel.as_str()));
        }
        // Between any two steps of an opening the right may end.
        if self.rng.random_bool(0.2) {
            self.something_ends();
        }
        let cursor = self.cursors[self.rng.random_range(0..self.cursors.len())];
        let start = if cursor == StreamId::ZERO { Start::Earliest } else { after(cursor) };
        let subscription = Subscription {
            connection: "n.1".into(),
            channels: channels.into_iter().filter(|channel| caller.may_subscribe(channel)).collect(),
            start: Ok(start),
            filter: None,
            envelope: true,
            permit: None,
        };
        let (node, revocations) = (&self.node, &self.access.revocations);
        let moment = self.moment();
        let session = Session::open_for(&caller, revocations, &node.hub, &node.options, subscription, moment);
        self.connections.push(Connection { session, of, under_way: None, answered: None, ended: false });
    }

    fn something_ends(&mut self) {
        if self.rng.random_bool(0.5) {
            self.revoke();
        } else {
            self.now_ms += self.rng.random_range(0..4_000);
        }
    }

    async fn step(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.connections.len());
        let (moment, expected) = (self.moment(), self.reason(&self.connections[at].of));
        let hub = Arc::clone(&self.node.hub);
        let slow = self.rng.random_bool(0.5);
        let connection = &mut self.connections[at];
        // What was gathered before and still waits for the client.
        assert_eq!(connection.session.is_barred(moment), expected.is_some() && !connection.ended);
        if let Some(requests) = connection.under_way.take_if(|_| !slow) {
            let read = Arc::clone(&hub.pages).read_heads(requests);
            connection.answered = Some(tokio::time::timeout(DEADLINE, read).await.expect("a page is read"));
        } else if let Some(result) = connection.answered.take_if(|_| !slow) {
            connection.session.loaded(result, moment);
        }
        let mut batch = Batch::default();
        let next = connection.session.step(moment, &mut batch);
        let sent = blocks(&batch.take().concat());
        match (expected, connection.ended) {
            (Some(_), true) => {
                assert!(sent.is_empty(), "after the end comes nothing: {sent:?}");
                return;
            }
            (Some(reason), false) => {
                assert_eq!(sent.len(), 1, "the end alone is told, and at once: {sent:?}");
                assert_eq!((sent[0].event.as_str(), &sent[0].id), ("closing", &None));
                assert_eq!(sent[0].json(), json!({"reason": reason, "reconnect": false}));
                assert!(matches!(next, Next::End));
                connection.ended = true;
                self.ends += 1;
                return;
            }
            (None, ended) => assert!(!ended, "only the end of the right ends a session here"),
        }
        for block in &sent {
            assert!(["connected", "message", "heartbeat"].contains(&block.event.as_str()), "{block:?}");
            if block.event == "message" {
                let channel = block.json()["channel"].as_str().unwrap().to_owned();
                assert!(connection.of.channels.contains(channel.as_str()), "{channel} is not theirs");
                self.delivered += 1;
            }
            let id = block.id.as_deref().map(|id| id.parse::<crate::id::EventId>().unwrap().stream_id());
            self.cursors.extend(id);
        }
        match next {
            Next::Read(requests) => connection.under_way = Some(requests),
            Next::End => panic!("nothing ended"),
            Next::Flush | Next::FlushAndWait(_) | Next::Again | Next::Wait(_) => {}
        }
    }

    async fn run(mut self) -> (usize, usize) {
        for _ in 0..TURNS {
            match self.rng.random_range(0..100) {
                0..10 => {
                    let channel = CHANNELS[self.rng.random_range(0..CHANNELS.len())];
                    self.node.publish(channel, "x").await;
                    self.node.tail().await;
                }
                10..16 => self.issue(),
                16..24 => self.connect().await,
                24..28 => self.something_ends(),
                _ => self.step().await,
            }
        }
        (self.delivered, self.ends)
    }
}

/// Seen to fail without the second look at revocations once a session is admitted, without the look for sessions that a
/// revocation ends, with an end of the token that is passed over, and with one that is only looked at while no page is
/// being read. One of its worlds found that sessions kept their pages when they had ended, until nobody else could read.
#[tokio::test]
async fn nothing_is_delivered_after_a_right_has_ended_however_it_ends() {
    let given = std::env::var("HEADWATER_TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let first = given.unwrap_or_else(|| rand::random::<u32>().into());
    let worlds = if given.is_some() { 1 } else { WORLDS };
    let (mut delivered, mut ends) = (0, 0);
    for seed in first..first + worlds {
        eprintln!("replay with HEADWATER_TEST_SEED={seed}");
        let (more, more_ends) = World::new(StdRng::seed_from_u64(seed)).await.run().await;
        (delivered, ends) = (delivered + more, ends + more_ends);
    }
    eprintln!("{delivered} events and {ends} ends in {worlds} worlds");
    assert!(given.is_some() || (delivered > 100 && ends > 50), "the worlds are not empty");
}

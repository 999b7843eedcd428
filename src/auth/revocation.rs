//! Revocations: tokens that an administrator ended before their time.
//!
//! Invariant: from [`Revocations::put`] on, no token that matches is found valid until the revocation's own end.
//! Neighbours: `control.rs` keeps them in the store and carries them to every node; whoever opens a session
//! admits it first and looks here after, while a revocation is put here first and then looks for sessions.

use std::collections::HashMap;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::caller::Caller;

/// Most revocations in force at a time, about 100 bytes each on every node.
pub const REVOCATIONS_MAX: usize = 100_000;
/// Longest `jti` or `sub` in bytes.
const TARGET_BYTES_MAX: usize = 256;

/// What is wrong with a `jti` or a `sub` to revoke, if anything is.
pub fn check_target(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > TARGET_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "what can be revoked has 1 to {TARGET_BYTES_MAX} bytes and no control characters"
        ));
    }
    Ok(())
}

/// Which tokens are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The token with this `jti`.
    Token(Box<str>),
    /// All with this `sub`, those that are still to be issued too.
    Subject(Box<str>),
}

/// What ends a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which tokens.
    pub target: Target,
    /// When it may be forgotten, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// When a revocation that is ordered is to end, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Then, whatever was ordered before. In the past it lifts an earlier one.
    Exactly(u64),
    /// Then, unless an earlier one lasts longer.
    AtLeast(u64),
}

impl Until {
    /// The moment that was ordered.
    pub fn ms(self) -> u64 {
        let (Self::Exactly(ms) | Self::AtLeast(ms)) = self;
        ms
    }

    /// The moment that counts beside that of an earlier revocation.
    pub fn beside(self, earlier_ms: Option<u64>) -> u64 {
        match self {
            Self::Exactly(ms) => ms,
            Self::AtLeast(ms) => ms.max(earlier_ms.unwrap_or(0)),
        }
    }
}

impl Target {
    /// Whether the caller came with such a token.
    pub fn matches(&self, caller: &Caller) -> bool {
        match self {
            Self::Token(jti) => caller.token_id() == Some(jti),
            Self::Subject(sub) => caller.token_subject() == Some(sub),
        }
    }
}

/// One text, as stores keep it.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(jti) => write!(f, "jti:{jti}"),
            Self::Subject(sub) => write!(f, "sub:{sub}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("jti", jti)) => Ok(Self::Token(jti.into())),
            Some(("sub", sub)) => Ok(Self::Subject(sub.into())),
            _ => Err(()),
        }
    }
}

/// The revocations that this node knows.
#[derive(Debug, Default)]
pub struct Revocations {
    /// Until when, by target.
    known: RwLock<HashMap<Target, u64>>,
    /// Tells whoever holds no session that there are others now.
    changed: watch::Sender<()>,
}

impl Revocations {
    /// From now on matching tokens are refused. An `until_ms` that has passed lifts an earlier revocation.
    pub fn put(&self, revocation: Revocation, now_ms: u64) {
        let mut known = self.known.write();
        if revocation.until_ms <= now_ms {
            known.remove(&revocation.target);
            return;
        }
        if known.len() >= REVOCATIONS_MAX {
            known.retain(|_, until| *until > now_ms);
        }
        known.insert(revocation.target, revocation.until_ms);
        drop(known);
        self.changed.send_replace(());
    }

    /// Forgets what is known and takes these instead.
    pub fn replace(&self, revocations: Vec<Revocation>, now_ms: u64) {
        let in_force = revocations.into_iter().filter(|revocation| revocation.until_ms > now_ms);
        *self.known.write() = in_force.map(|revocation| (revocation.target, revocation.until_ms)).collect();
        self.changed.send_replace(());
    }

    /// Hears of every change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether the caller's token was revoked.
    pub fn cover(&self, caller: &Caller, now_ms: u64) -> bool {
        let known = self.known.read();
        if known.is_empty() {
            return false;
        }
        let in_force = |target| known.get(&target).is_some_and(|until| *until > now_ms);
        caller.token_id().is_some_and(|jti| in_force(Target::Token(jti.into())))
            || caller.token_subject().is_some_and(|sub| in_force(Target::Subject(sub.into())))
    }

    /// How many are in force.
    pub fn count(&self, now_ms: u64) -> usize {
        self.known.read().values().filter(|until| **until > now_ms).count()
    }

    /// Those in force, in the order of their targets.
    pub fn list(&self, now_ms: u64) -> Vec<Revocation> {
        let known = self.known.read();
        let in_force = known.iter().filter(|(_, until)| **until > now_ms);
        let mut list: Vec<Revocation> = in_force
            .map(|(target, until_ms)| Revocation { target: target.clone(), until_ms: *until_ms })
            .collect();
        list.sort_by_cached_key(|revocation| revocation.target.to_string());
        list
    }
}

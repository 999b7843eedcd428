//! Callers: whom a request comes from, once that is known.
//!
//! Invariant: a caller is only made here, of a credential that was verified, of none, or by an open broker.

use std::sync::Arc;

use super::api_key::ApiKey;
use super::rights::{Granted, Rights};
use crate::channel::Channel;

/// Whom a request comes from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Known>);

#[derive(Debug)]
struct Known {
    kind: Kind,
    user: Option<Arc<str>>,
    rights: Rights,
}

#[derive(Debug)]
enum Kind {
    /// The broker is open.
    Anybody,
    /// No credential was presented.
    Anonymous,
    /// The name of the key.
    ApiKey(Box<str>),
    Token {
        jti: Option<Box<str>>,
        ends_at_ms: u64,
    },
}

impl Caller {
    /// Somebody at an open broker, who may call themselves `user`.
    pub fn anybody(user: Option<Arc<str>>) -> Self {
        Self::new(Kind::Anybody, user, Rights::all())
    }

    /// Somebody without a credential.
    pub(super) fn anonymous(patterns: &[String]) -> Self {
        Self::new(Kind::Anonymous, None, Rights::of(&Granted::default(), patterns, None))
    }

    /// A program with an API key.
    pub(super) fn of_key(key: &ApiKey, anonymous: &[String]) -> Self {
        Self::new(Kind::ApiKey(key.name.as_str().into()), None, Rights::of(&key.granted, anonymous, None))
    }

    /// The bearer of a token that was verified.
    pub(super) fn of_token(
        sub: Option<&str>,
        jti: Option<String>,
        ends_at_ms: u64,
        granted: &Granted,
        anonymous: &[String],
    ) -> Self {
        let rights = Rights::of(granted, anonymous, sub);
        Self::new(Kind::Token { jti: jti.map(Into::into), ends_at_ms }, sub.map(Arc::from), rights)
    }

    fn new(kind: Kind, user: Option<Arc<str>>, rights: Rights) -> Self {
        Self(Arc::new(Known { kind, user, rights }))
    }

    /// The user's id: a token's `sub`, or what somebody at an open broker said.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.0.user.as_ref()
    }

    /// The token's id.
    pub fn token_id(&self) -> Option<&str> {
        match &self.0.kind {
            Kind::Token { jti, .. } => jti.as_deref(),
            _ => None,
        }
    }

    /// The id of the user that a token is for; revocations go by it.
    pub fn token_subject(&self) -> Option<&str> {
        matches!(self.0.kind, Kind::Token { .. }).then(|| self.0.user.as_deref()).flatten()
    }

    /// Who is held to the limits of one caller: a user, or a program.
    pub fn account(&self) -> Option<String> {
        match &self.0.kind {
            Kind::ApiKey(name) => Some(format!("key {name}")),
            Kind::Anybody | Kind::Token { .. } => self.0.user.as_deref().map(|user| format!("user {user}")),
            Kind::Anonymous => None,
        }
    }

    /// When the token ends, in milliseconds since the Unix epoch.
    pub fn ends_at_ms(&self) -> Option<u64> {
        match self.0.kind {
            Kind::Token { ends_at_ms, .. } => Some(ends_at_ms),
            _ => None,
        }
    }

    /// Whether no credential was presented where one could have been.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.0.kind, Kind::Anonymous)
    }

    /// Whether it is a program of the operator's: an API key, or somebody who may do everything.
    pub fn is_operator(&self) -> bool {
        matches!(self.0.kind, Kind::ApiKey(_)) || self.is_admin()
    }

    /// Whether it may do everything.
    pub fn is_admin(&self) -> bool {
        self.0.rights.admin()
    }

    /// Whether it may read a channel, live and from its history.
    pub fn may_subscribe(&self, channel: &Channel) -> bool {
        self.0.rights.subscribe(channel)
    }

    /// Whether there may be a channel that it may read.
    pub fn may_subscribe_anywhere(&self) -> bool {
        self.0.rights.subscribe_anywhere()
    }

    /// Whether there may be a channel that it may publish to.
    pub fn may_publish_anywhere(&self) -> bool {
        self.0.rights.publish_anywhere()
    }

    /// Whether it may publish to a channel.
    pub fn may_publish(&self, channel: &Channel) -> bool {
        self.0.rights.publish(channel)
    }
}

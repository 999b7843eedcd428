//! Access: whom a request comes from, and what they may do.
//!
//! ```text
//! credential --> API key?  (sha-256, constant time) --+
//!            \-> JWT: header -> key -> signature      +--> Caller: user, rights, when it ends
//!                     -> claims -> revocations  ------+
//! ```
//!
//! Invariants: nothing that a token says is believed before its signature was verified, with a key and an
//! algorithm that the configuration chose; a credential that is presented and wrong is never treated as none;
//! a caller has exactly the rights that its credential names. Neighbours: `http/access.rs` finds the
//! credential in a request and words the refusals, `control.rs` carries revocations between nodes.

mod api_key;
mod caller;
mod claims;
mod issuer;
mod jwks;
pub mod keys;
mod metrics;
pub mod mint;
pub mod revocation;
mod rights;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::timeout;

pub use self::api_key::{ApiKey, KeyHash};
pub use self::caller::Caller;
use self::claims::Claims;
pub use self::issuer::{FETCH_INTERVAL_MIN, Issuer, IssuerUrl};
pub use self::keys::{Algorithm, KeySet};
use self::metrics::Fetch;
pub use self::metrics::Reason;
pub use self::revocation::Revocations;
pub use self::rights::{Granted, Rights};
use crate::clock;
use crate::metrics::{Counters, Registry, observe};

/// How long nobody looks whether the clock was set.
const CLOCK_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Why a credential is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is none, and something asks for one.
    #[error("{0}")]
    Missing(String),
    /// It is none, or none of this broker's; the text says why and repeats nothing of it.
    #[error("{1}")]
    Invalid(Reason, String),
    /// It was valid once.
    #[error("{0}")]
    Expired(String),
    /// An administrator ended it.
    #[error("the token, or its subject, was revoked")]
    Revoked,
    /// No key has its name, and the issuer cannot be asked for a newer one before so long.
    #[error("no key has the token's kid; the issuer can be asked again in {} s", .0.as_secs() + 1)]
    UnknownKey(Duration),
    /// Whether it is valid cannot be found out now.
    #[error("the keys of the issuer cannot be had now: {0}")]
    KeysUnavailable(String),
}

impl Rejection {
    fn invalid(reason: Reason, text: impl Into<String>) -> Self {
        Self::Invalid(reason, text.into())
    }

    /// Of a request that presents more than one credential in one place.
    pub fn ambiguous(text: &str) -> Self {
        Self::invalid(Reason::Malformed, text)
    }
}

/// Where the keys come from that verify tokens.
pub enum KeyStore {
    /// From the configuration; replaced when that is read again.
    Fixed(RwLock<Arc<KeySet>>),
    /// From an issuer's URL.
    Issuer(Arc<Issuer>),
}

/// What a token has to be beside signed.
#[derive(Clone, Debug, Default)]
pub struct TokenPolicy {
    /// `iss` must be one of these, unless there are none.
    pub issuers: Vec<String>,
    /// `aud` must name one of these, unless there are none.
    pub audiences: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// No token counts for longer after its `iat`, because revocations are kept for so long.
    pub lifetime_max: Duration,
}

/// Tokens that a broker accepts.
pub struct Tokens {
    /// Verify them.
    pub keys: KeyStore,
    /// What else is asked of them.
    pub policy: TokenPolicy,
}

/// Decides whom a request comes from.
pub struct Access {
    /// `None`: no key is configured, and everybody may do everything.
    guarded: Option<Guarded>,
    /// Whoever presents nothing. They share what is known of them, as an idle stream should cost little.
    nobody: Caller,
    /// Tokens that an administrator ended.
    pub revocations: Revocations,
    refused: Counters<Reason>,
}

struct Guarded {
    api_keys: Vec<ApiKey>,
    tokens: Option<Tokens>,
    /// Subscribe patterns of whoever presents nothing, and of everybody else.
    everybody: Vec<String>,
}

impl Access {
    /// Everybody may do everything.
    pub fn open() -> Self {
        Self::new(None, Caller::anybody(None))
    }

    /// Rights go by credentials; `anonymous` is what can be subscribed to without one.
    pub fn guarded(api_keys: Vec<ApiKey>, tokens: Option<Tokens>, anonymous: Vec<String>) -> Self {
        let nobody = Caller::anonymous(&anonymous);
        Self::new(Some(Guarded { api_keys, tokens, everybody: anonymous }), nobody)
    }

    fn new(guarded: Option<Guarded>, nobody: Caller) -> Self {
        Self { guarded, nobody, revocations: Revocations::default(), refused: Counters::default() }
    }

    /// Whoever presents nothing: everybody at an open broker, otherwise somebody anonymous.
    pub fn nobody(&self) -> Caller {
        self.nobody.clone()
    }

    /// Registers what is counted, and how many revocations are in force.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        let refused = self.refused.clone();
        registry.register("credentials_refused", "Tokens and API keys that were refused", refused);
        let fetches = match self.guarded.as_ref().and_then(|guarded| guarded.tokens.as_ref()) {
            Some(Tokens { keys: KeyStore::Issuer(issuer), .. }) => issuer.fetches(),
            _ => Counters::<Fetch>::default(),
        };
        registry.register("key_fetches", "Times that the issuer's keys were asked for", fetches);
        let access = Arc::clone(self);
        let in_force = move || access.revocations.count(clock::unix_ms());
        observe(registry, "revocations", "Revocations in force", in_force);
    }

    /// Whether no key is configured.
    pub fn is_open(&self) -> bool {
        self.guarded.is_none()
    }

    /// Takes other keys for tokens from now on. Does nothing where an issuer's URL is the source.
    pub fn replace_keys(&self, keys: KeySet) {
        if let Some(Tokens { keys: KeyStore::Fixed(current), .. }) =
            self.guarded.as_ref().and_then(|guarded| guarded.tokens.as_ref())
        {
            *current.write() = Arc::new(keys);
        }
    }

    /// Whom a credential belongs to. `now_ms` is since the Unix epoch.
    pub async fn identify(&self, credential: Option<&str>, now_ms: u64) -> Result<Caller, Rejection> {
        let identified = self.find(credential, now_ms).await;
        identified.map_err(|rejection| self.counted(rejection))
    }

    /// Counts what is refused before [`Access::identify`] could be asked.
    pub fn counted(&self, rejection: Rejection) -> Rejection {
        if let Some(reason) = rejection.reason() {
            self.refused.of(reason).inc();
        }
        rejection
    }

    async fn find(&self, credential: Option<&str>, now_ms: u64) -> Result<Caller, Rejection> {
        let (Some(guarded), Some(credential)) = (&self.guarded, credential) else { return Ok(self.nobody()) };
        if let Some(key) = api_key::find(&guarded.api_keys, credential) {
            return Ok(Caller::of_key(key, &guarded.everybody));
        }
        let Some(tokens) = &guarded.tokens else {
            return Err(Rejection::invalid(
                Reason::Unknown,
                "this is none of the configured API keys (auth.keys)",
            ));
        };
        let claims = tokens.verify(credential).await?;
        let caller = claims.into_caller(&tokens.policy, &guarded.everybody, now_ms)?;
        self.still_valid(&caller, now_ms)?;
        Ok(caller)
    }

    /// Whether a caller that was identified before may go on.
    pub fn still_valid(&self, caller: &Caller, now_ms: u64) -> Result<(), Rejection> {
        if caller.ends_at_ms().is_some_and(|end| now_ms >= end) {
            return Err(Rejection::Expired("the token has expired".to_owned()));
        }
        if self.revocations.cover(caller, now_ms) {
            return Err(Rejection::Revoked);
        }
        Ok(())
    }

    /// Waits until the right of a caller that was identified before has ended, and answers why.
    pub async fn ended(&self, caller: &Caller) -> Rejection {
        // First register, then look.
        let mut changes = self.revocations.changes();
        loop {
            let now_ms = clock::unix_ms();
            if let Err(ended) = self.still_valid(caller, now_ms) {
                return ended;
            }
            let left =
                caller.ends_at_ms().map_or(CLOCK_INTERVAL_MAX, |at| Duration::from_millis(at - now_ms));
            // Whichever comes first, it is looked at again.
            let _ = timeout(left.min(CLOCK_INTERVAL_MAX), changes.changed()).await;
        }
    }
}

/// Whether a text is taken for a token of an issuer's that signs with this secret, which nobody knows.
#[cfg(any(test, fuzzing))]
pub(crate) fn believes_any(text: &str) -> bool {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).expect("the system has random numbers");
    let keys = KeySet::of_secret(&secret, &[]).expect("32 bytes are a secret");
    keys::Unverified::parse(text).is_ok_and(|token| keys.verify(&token).is_ok())
}

impl Tokens {
    /// What a token claims, once it is known that the issuer said so.
    async fn verify(&self, token: &str) -> Result<Claims, Rejection> {
        let token = keys::Unverified::parse(token)?;
        match &self.keys {
            KeyStore::Fixed(keys) => {
                let keys = Arc::clone(&keys.read());
                keys.verify(&token).map_err(keys::Unverifiable::into_rejection)
            }
            KeyStore::Issuer(issuer) => issuer.verify(&token).await,
        }
    }
}

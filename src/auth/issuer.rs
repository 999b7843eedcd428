//! The keys of an issuer that publishes them at a URL.
//!
//! One task fetches; requests read what it has. Invariants: a token that names an unknown key has the set
//! fetched again, but however many do, not more often than every [`FETCH_INTERVAL_MIN`], and is not refused for good
//! before; keys that were fetched once stay while the issuer cannot be reached; no request waits longer than one
//! fetch takes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url, redirect};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::claims::Claims;
use super::jwks::Publicity;
use super::keys::{Algorithm, KeySet, Unverifiable, Unverified};
use super::metrics::Fetch;
use super::{Rejection, jwks};
use crate::metrics::Counters;

/// Between two fetches, whoever asks.
pub const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// Keys that an issuer withdrew are gone here after so long.
const FETCH_INTERVAL_MAX: Duration = Duration::from_secs(600);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const SET_BYTES_MAX: usize = 1024 * 1024;

/// Where an issuer publishes its keys: `https`, or `http` on this machine. `Debug`, `Display` and serialization show
/// no credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerUrl(Url);

impl IssuerUrl {
    /// Validates a URL from outside.
    ///
    /// # Errors
    /// In words, when keys fetched from there could be anybody's.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The text is not repeated: it may hold a password.
        let url = Url::parse(text).map_err(|error| format!("this is no URL: {error}"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if is_loopback => Ok(Self(url)),
            _ => Err(format!(
                "{}: keys are fetched over https, or over http from this machine only; whoever can change them \
                 on their way can make any token",
                Self(url)
            )),
        }
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if !shown.username().is_empty() || shown.password().is_some() {
            // Neither fails where there is a host, and without one there is nothing to hide.
            let _ = (shown.set_password(None), shown.set_username("***"));
        }
        fmt::Display::fmt(&shown, f)
    }
}

impl fmt::Debug for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

/// An issuer's keys as far as they are known.
pub struct Issuer {
    url: IssuerUrl,
    http: Client,
    allowed: Vec<Algorithm>,
    interval_min: Duration,
    wanted: Notify,
    known: watch::Sender<Known>,
    fetches: Counters<Fetch>,
}

#[derive(Clone, Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    /// Why the last fetch failed, if it did.
    failure: Option<String>,
    /// The next fetch begins at this time at the earliest; `None` before the first has ended.
    next_at: Option<Instant>,
}

impl Issuer {
    /// Fetches nothing yet: see [`Issuer::run`].
    ///
    /// # Errors
    /// When this machine's trusted certificates cannot be read.
    pub fn new(url: IssuerUrl, allowed: Vec<Algorithm>, interval_min: Duration) -> Result<Self, String> {
        let mut http = Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")));
        if url.0.scheme() == "http" {
            // A proxy for the outside world cannot reach this machine's own addresses.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| format!("cannot fetch keys: {error}"))?;
        let known = watch::Sender::new(Known::default());
        let fetches = Counters::default();
        Ok(Self { url, http, allowed, interval_min, wanted: Notify::new(), known, fetches })
    }

    /// Counts what became of fetching.
    pub(super) fn fetches(&self) -> Counters<Fetch> {
        self.fetches.clone()
    }

    /// Keeps the keys up to date until `ended`.
    pub async fn run(self: Arc<Self>, ended: CancellationToken) {
        ended.run_until_cancelled(self.keep_up_to_date()).await;
    }

    async fn keep_up_to_date(&self) {
        loop {
            let fetched = self.fetch().await;
            let now = Instant::now();
            let next_at = now + self.interval_min;
            let was_told = self.known.borrow().failure.is_some();
            if let Err(reason) = &fetched
                && !was_told
            {
                tracing::warn!(url = %self.url, reason, "the issuer's keys cannot be fetched; those that are known stay");
            }
            if fetched.is_ok() && was_told {
                tracing::info!(url = %self.url, "the issuer's keys were fetched again");
            }
            let failed = fetched.is_err();
            self.fetches.of(if failed { Fetch::Failed } else { Fetch::Fetched }).inc();
            self.known.send_modify(|known| {
                known.next_at = Some(next_at);
                match fetched {
                    Ok(keys) => (known.keys, known.failure) = (Some(Arc::new(keys)), None),
                    Err(reason) => known.failure = Some(reason),
                }
            });
            sleep_until(next_at).await;
            if !failed {
                // Whoever asked in the meantime left a permit.
                let _ = timeout(FETCH_INTERVAL_MAX, self.wanted.notified()).await;
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let failed = |error: reqwest::Error| in_words(&error.without_url());
        let answer = self.http.get(self.url.0.clone()).send().await;
        let mut answer = answer.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > SET_BYTES_MAX {
                return Err(format!("the answer exceeds {SET_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        jwks::parse(&body, Publicity::Public, &self.allowed)
    }

    /// What a token claims, once a key of the issuer's is known to have signed it.
    pub(super) async fn verify(&self, token: &Unverified<'_>) -> Result<Claims, Rejection> {
        let mut updates = self.known.subscribe();
        let mut known = updates.borrow_and_update().clone();
        let mut asked = false;
        loop {
            let rejection = match known.keys.as_ref().map(|keys| keys.verify(token)) {
                Some(Ok(claims)) => return Ok(claims),
                Some(Err(Unverifiable::Refused(rejection))) => return Err(rejection),
                Some(Err(Unverifiable::NoSuchKey(rejection))) => Some(rejection),
                None => None,
            };
            let next_in = known.next_at.map(|at| at.saturating_duration_since(Instant::now()));
            let has_to_wait = next_in.filter(|wait| !wait.is_zero());
            if asked || has_to_wait.is_some() {
                // Without an answer from the issuer nobody can say that the key does not exist.
                return Err(match (known.failure, rejection) {
                    (None, Some(rejection)) => match has_to_wait {
                        Some(wait) if !asked => Rejection::UnknownKey(wait),
                        _ => rejection,
                    },
                    (failure, _) => {
                        Rejection::KeysUnavailable(failure.unwrap_or_else(|| "not fetched yet".to_owned()))
                    }
                });
            }
            asked = true;
            self.wanted.notify_one();
            // The fetch ends by itself before this; then what is known is looked at once more.
            let _ = timeout(FETCH_TIMEOUT + Duration::from_secs(1), updates.changed()).await;
            known = updates.borrow_and_update().clone();
        }
    }
}

/// An error with its causes: what went wrong stands in the last one.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

//! Minting: making a token with the configured secret, for programs that have no issuer, and for trying out.

use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use super::keys::Algorithm;
use super::rights::Granted;

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct Order {
    /// The user's id.
    pub sub: Option<String>,
    /// Names the token, so that it can be revoked alone.
    pub jti: String,
    /// How long it counts.
    pub ttl: Duration,
    /// What it allows.
    pub granted: Granted,
    /// Says whom it is from.
    pub issuer: Option<String>,
    /// Says whom it is for.
    pub audience: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    iat: u64,
    exp: u64,
    jti: &'a str,
    headwater: &'a Granted,
}

/// Signs a token.
///
/// # Errors
/// In words, when the algorithm needs another key than a secret.
pub fn mint(secret: &[u8], algorithm: Algorithm, order: &Order, now_ms: u64) -> Result<String, String> {
    let iat = now_ms / 1_000;
    let claims = Claims {
        iss: order.issuer.as_deref(),
        aud: order.audience.as_deref(),
        sub: order.sub.as_deref(),
        iat,
        exp: iat.saturating_add(order.ttl.as_secs().max(1)),
        jti: &order.jti,
        headwater: &order.granted,
    };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret))
        .map_err(|error| error.to_string())
}

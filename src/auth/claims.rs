//! Claims: what a verified token says (RFC 7519, section 4), and whether it counts now.
//!
//! Invariant: a token counts from the later of `nbf` and `iat` until the earlier of `exp` and `iat` + `lifetime_max`,
//! give or take the leeway, and never without `exp`. Whatever a token is called by can be revoked.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::caller::Caller;
use super::revocation::check_target;
use super::rights::Granted;
use super::{Reason, Rejection, TokenPolicy};
use crate::channel::check_user;

/// The claims that matter here; others are passed over.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Claims {
    pub(super) sub: Option<String>,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    iss: Option<String>,
    aud: Option<OneOrMany>,
    pub(super) jti: Option<String>,
    headwater: Option<Granted>,
}

impl Claims {
    /// Checks everything but the signature, which was checked before.
    pub(super) fn into_caller(
        self,
        policy: &TokenPolicy,
        anonymous: &[String],
        now_ms: u64,
    ) -> Result<Caller, Rejection> {
        let leeway = millis(policy.leeway);
        let Some(NumericDate(exp)) = self.exp else {
            return Err(Rejection::invalid(Reason::Claims, "the token has no exp, which is required"));
        };
        if let Some(NumericDate(nbf)) = self.nbf
            && now_ms.saturating_add(leeway) < nbf
        {
            return Err(Rejection::invalid(Reason::NotYetValid, "the token is not valid yet (nbf)"));
        }
        if let Some(NumericDate(iat)) = self.iat
            && now_ms.saturating_add(leeway) < iat
        {
            // Its end would move with it, beyond that of a revocation.
            let text =
                "the token was issued in the future (iat); auth.jwt.leeway says how far clocks may differ";
            return Err(Rejection::invalid(Reason::NotYetValid, text));
        }
        let outlived = self.iat.map(|NumericDate(iat)| iat.saturating_add(millis(policy.lifetime_max)));
        let ends_at_ms = exp.min(outlived.unwrap_or(u64::MAX)).saturating_add(leeway);
        if now_ms >= ends_at_ms {
            return Err(Rejection::Expired(match outlived {
                Some(outlived) if outlived < exp => format!(
                    "the token was issued longer ago than auth.jwt.lifetime_max ({})",
                    humantime::format_duration(policy.lifetime_max)
                ),
                _ => "the token has expired".to_owned(),
            }));
        }
        check_one_of(Reason::Issuer, &policy.issuers, self.iss.as_slice())?;
        let audiences = self.aud.as_ref().map_or(&[][..], OneOrMany::as_slice);
        check_one_of(Reason::Audience, &policy.audiences, audiences)?;
        if let Some(sub) = &self.sub {
            check_user(sub)
                .map_err(|reason| Rejection::invalid(Reason::Claims, format!("the token's sub: {reason}")))?;
        }
        if let Some(jti) = &self.jti {
            check_target(jti)
                .map_err(|reason| Rejection::invalid(Reason::Claims, format!("the token's jti: {reason}")))?;
        }
        let granted = self.headwater.unwrap_or_default();
        Ok(Caller::of_token(self.sub.as_deref(), self.jti, ends_at_ms, &granted, anonymous))
    }
}

fn check_one_of(reason: Reason, wanted: &[String], said: &[String]) -> Result<(), Rejection> {
    if wanted.is_empty() || said.iter().any(|said| wanted.contains(said)) {
        return Ok(());
    }
    let text = match reason {
        Reason::Issuer => "the token's iss is none of auth.jwt.issuer",
        _ => "the token's aud is none of auth.jwt.audience",
    };
    Err(Rejection::invalid(reason, text))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch; seconds, perhaps with a fraction, in JSON (RFC 7519, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NumericDate(u64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = NumericDate;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of seconds since 1970")
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds.saturating_mul(1_000)))
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<NumericDate, E> {
                self.visit_u64(u64::try_from(seconds).unwrap_or(0))
            }

            #[expect(clippy::cast_sign_loss, reason = "a float that is too small or large saturates")]
            fn visit_f64<E: Error>(self, seconds: f64) -> Result<NumericDate, E> {
                if !seconds.is_finite() {
                    return Err(E::invalid_value(Unexpected::Float(seconds), &self));
                }
                Ok(NumericDate((seconds * 1_000.0) as u64))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// A text or a list of texts (RFC 7519, section 4.1.3).
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

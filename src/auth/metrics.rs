//! What access counts: credentials that were refused, and what became of fetching an issuer's keys.

use super::Rejection;
use crate::metrics::label;

/// Why a credential that was presented is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Neither a JWT nor one of the API keys.
    Unknown,
    /// A JWT that cannot be read, or one of several.
    Malformed,
    /// Its algorithm is not allowed.
    Algorithm,
    /// It names a key that nobody here has.
    Key,
    /// The signature is another's.
    Signature,
    /// A claim is missing, or not of its type.
    Claims,
    /// Before `nbf`.
    NotYetValid,
    /// `iss` is another one.
    Issuer,
    /// `aud` is another one.
    Audience,
    /// After its end.
    Expired,
    /// An administrator ended it.
    Revoked,
    /// The issuer's keys cannot be had.
    KeysUnavailable,
}

label!(
    Reason, "reason",
    Unknown => "unknown", Malformed => "malformed", Algorithm => "algorithm", Key => "key", Signature => "signature",
    Claims => "claims", NotYetValid => "not_yet_valid", Issuer => "issuer", Audience => "audience",
    Expired => "expired", Revoked => "revoked", KeysUnavailable => "keys_unavailable",
);

/// How an attempt to fetch keys ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    Fetched,
    Failed,
}

label!(Fetch, "outcome", Fetched => "fetched", Failed => "failed");

impl Rejection {
    /// Why it was refused; `None` where nothing was presented.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Missing(_) => None,
            Self::Invalid(reason, _) => Some(*reason),
            Self::UnknownKey(_) => Some(Reason::Key),
            Self::Expired(_) => Some(Reason::Expired),
            Self::Revoked => Some(Reason::Revoked),
            Self::KeysUnavailable(_) => Some(Reason::KeysUnavailable),
        }
    }
}

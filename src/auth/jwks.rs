//! Key sets as issuers publish them (RFC 7517).
//!
//! Invariant: a key that is of no use here (for encryption, of an unknown kind, with an algorithm that is not
//! allowed) is left out; a set is only refused when it is none, or nothing of it is left.

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde::Deserialize;
use serde_json::Value;

use super::keys::{Algorithm, KEYS_MAX, KeyKind, KeySet, VerifyingKey, curve_of};

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// Who can read a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publicity {
    /// Only the operator: it may hold secrets.
    Private,
    /// Everybody: a secret in it is none.
    Public,
}

/// Reads a set.
///
/// # Errors
/// In words, when the text is no key set or holds no key that can verify.
pub(super) fn parse(json: &[u8], publicity: Publicity, allowed: &[Algorithm]) -> Result<KeySet, String> {
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| format!("this is no key set, as in {{\"keys\": [...]}}: {error}"))?;
    if document.keys.len() > KEYS_MAX {
        return Err(format!("the set has {} keys; at most {KEYS_MAX} are taken", document.keys.len()));
    }
    let keys: Vec<VerifyingKey> = document
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value(key).ok())
        .filter(|key: &Jwk| {
            publicity == Publicity::Private || !matches!(key.algorithm, AlgorithmParameters::OctetKey(_))
        })
        .filter_map(|key| verifying_key(&key, allowed))
        .collect();
    if keys.is_empty() {
        return Err("the set holds no key that verifies signatures with an allowed algorithm".to_owned());
    }
    Ok(KeySet::new(keys))
}

fn verifying_key(jwk: &Jwk, allowed: &[Algorithm]) -> Option<VerifyingKey> {
    let common = &jwk.common;
    let for_signatures = common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|ops| ops.contains(&KeyOperations::Verify));
    if !for_signatures {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    let point = curve_of(bytes);
    let kind = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => KeyKind::Rsa,
        AlgorithmParameters::OctetKey(_) if bytes > 0 => KeyKind::Secret,
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => KeyKind::Ed25519,
        AlgorithmParameters::EllipticCurve(p) => match (&p.curve, point) {
            (EllipticCurve::P256, Some(KeyKind::P256)) => KeyKind::P256,
            (EllipticCurve::P384, Some(KeyKind::P384)) => KeyKind::P384,
            _ => return None,
        },
        _ => return None,
    };
    // The set may say which algorithm a key is for; where the configuration says so too, both count.
    let said = match common.key_algorithm {
        Some(said) => Some(Algorithm::try_from(said).ok()?),
        None => None,
    };
    let allowed = match said {
        Some(said) if allowed.is_empty() => &[said][..],
        _ => allowed,
    };
    let key = VerifyingKey::new(common.key_id.clone(), kind, key, allowed)?;
    match said {
        Some(said) => key.only_with(said),
        None => Some(key),
    }
}

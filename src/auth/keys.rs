//! Keys that verify tokens: a secret, a public key in PEM, or a key set.
//!
//! Invariant: a key is only ever used with the algorithms that the configuration named, or that follow from its
//! kind; what a token's header says chooses among these and adds nothing. So neither `none` nor a public key
//! taken for a secret can verify anything.

use std::fmt;

pub use jsonwebtoken::Algorithm;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, Header, Validation};

use super::claims::Claims;
use super::jwks::{self, Publicity};
use super::{Reason, Rejection};

/// A secret with fewer bytes can be guessed from a token (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Keys in a set; more are a mistake, or an attack.
pub(super) const KEYS_MAX: usize = 100;

/// Every algorithm, as configuration and tokens write it.
pub const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// How an algorithm is written.
pub fn algorithm_name(algorithm: Algorithm) -> &'static str {
    ALGORITHMS.iter().find(|(_, known)| *known == algorithm).map_or("?", |(name, _)| name)
}

/// What a key is, which decides the algorithms it can be used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyKind {
    fn algorithms(self) -> &'static [Algorithm] {
        use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        // The first one is what is meant when nothing else is said.
        match self {
            Self::Secret => &[HS256, HS384, HS512],
            Self::Rsa => &[RS256, RS384, RS512, PS256, PS384, PS512],
            Self::P256 => &[ES256],
            Self::P384 => &[ES384],
            Self::Ed25519 => &[EdDSA],
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Rsa => "RSA key",
            Self::P256 => "P-256 key",
            Self::P384 => "P-384 key",
            Self::Ed25519 => "Ed25519 key",
        })
    }
}

/// One key.
pub(super) struct VerifyingKey {
    /// Its name in a set; a key without one verifies tokens that name any.
    pub(super) kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
    /// A secret with fewer than [`SECRET_BYTES_MIN`] bytes.
    is_weak: bool,
}

impl VerifyingKey {
    /// `allowed` is what the configuration names, empty for what follows from the kind. `None` when nothing of
    /// it fits the key.
    pub(super) fn new(
        kid: Option<String>,
        family: KeyKind,
        key: DecodingKey,
        allowed: &[Algorithm],
    ) -> Option<Self> {
        let possible = family.algorithms();
        let algorithms: Vec<Algorithm> = match allowed {
            [] => possible[..1].to_vec(),
            allowed => allowed.iter().copied().filter(|a| possible.contains(a)).collect(),
        };
        let is_weak = family == KeyKind::Secret
            && key.try_get_as_bytes().is_ok_and(|secret| secret.len() < SECRET_BYTES_MIN);
        (!algorithms.is_empty()).then_some(Self { kid, algorithms, key, is_weak })
    }

    /// Uses the key with this one of its algorithms only, as a set may say.
    pub(super) fn only_with(mut self, algorithm: Algorithm) -> Option<Self> {
        self.algorithms.retain(|known| *known == algorithm);
        (!self.algorithms.is_empty()).then_some(self)
    }
}

/// The keys that tokens may be signed with.
pub struct KeySet {
    keys: Vec<VerifyingKey>,
}

/// Shows no key.
impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// A token whose header was read and whose signature was not verified.
pub(super) struct Unverified<'a> {
    token: &'a str,
    header: Header,
}

/// Why a set of keys cannot tell that a token is genuine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unverifiable {
    /// No key has the name that the token gives, or none of them made the signature of a token that gives none:
    /// another set of keys might do.
    NoSuchKey(Rejection),
    /// The token is at fault.
    Refused(Rejection),
}

impl Unverifiable {
    pub(super) fn into_rejection(self) -> Rejection {
        let (Self::NoSuchKey(rejection) | Self::Refused(rejection)) = self;
        rejection
    }
}

impl<'a> Unverified<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, Rejection> {
        if token.matches('.').count() != 2 {
            return Err(Rejection::invalid(
                Reason::Unknown,
                "this is neither a JWT nor one of the configured API keys",
            ));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| {
            Rejection::invalid(
                Reason::Malformed,
                "the token's header is none, or its alg is none that is known",
            )
        })?;
        if header.crit.is_some() {
            // RFC 7515, section 4.1.11: whoever does not understand an extension that is critical must refuse.
            return Err(Rejection::invalid(
                Reason::Malformed,
                "the token's header has critical extensions (crit), which are not understood",
            ));
        }
        Ok(Self { token, header })
    }
}

impl KeySet {
    pub(super) fn new(keys: Vec<VerifyingKey>) -> Self {
        Self { keys }
    }

    /// One secret for HMAC.
    ///
    /// # Errors
    /// In words, when it is no secret, or the algorithms are for another kind of key.
    pub fn of_secret(secret: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        if secret.starts_with(b"-----BEGIN") {
            return Err(
                "this is a key in PEM and no secret; a public one goes into auth.jwt.public_key_file"
                    .to_owned(),
            );
        }
        if secret.is_empty() {
            return Err("the secret is empty".to_owned());
        }
        Self::of_one(KeyKind::Secret, DecodingKey::from_secret(secret), allowed)
    }

    /// One public key.
    ///
    /// # Errors
    /// In words, when the text holds none, or the algorithms are for another kind of key.
    pub fn of_pem(pem: &str, allowed: &[Algorithm]) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY") {
            return Err("this is a private key; the broker needs the public one only".to_owned());
        }
        let bytes = pem.as_bytes();
        if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
            return Self::of_one(KeyKind::Rsa, key, allowed);
        }
        if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
            return Self::of_one(KeyKind::Ed25519, key, allowed);
        }
        if let Ok(key) = DecodingKey::from_ec_pem(bytes)
            && let Some(kind) = key.try_get_as_bytes().ok().and_then(|point| curve_of(point.len()))
        {
            return Self::of_one(kind, key, allowed);
        }
        Err("expected a public key in PEM: RSA, P-256, P-384 or Ed25519".to_owned())
    }

    /// The keys of a set (RFC 7517) in a file of the operator's.
    ///
    /// # Errors
    /// In words, when it is none, or none of its keys can be used.
    pub fn of_jwks(json: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        jwks::parse(json, Publicity::Private, allowed)
    }

    fn of_one(kind: KeyKind, key: DecodingKey, allowed: &[Algorithm]) -> Result<Self, String> {
        match VerifyingKey::new(None, kind, key, allowed) {
            Some(key) if allowed.iter().all(|a| kind.algorithms().contains(a)) => Ok(Self::new(vec![key])),
            _ => {
                let names: Vec<&str> = kind.algorithms().iter().map(|a| algorithm_name(*a)).collect();
                Err(format!("the key is a {kind}: auth.jwt.algorithms may name {}", names.join(", ")))
            }
        }
    }

    /// The algorithms of all keys, each once.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let used = |a: &&(&str, Algorithm)| self.keys.iter().any(|key| key.algorithms.contains(&a.1));
        ALGORITHMS.iter().filter(used).map(|(name, _)| *name).collect()
    }

    /// Whether tokens can be forged by guessing, as is tolerable only where nobody else can try.
    pub fn has_weak_secret(&self) -> bool {
        self.keys.iter().any(|key| key.is_weak)
    }

    /// What a token claims, if one of the keys made its signature.
    pub(super) fn verify(&self, token: &Unverified<'_>) -> Result<Claims, Unverifiable> {
        let Header { alg, kid, .. } = &token.header;
        let named = |key: &&VerifyingKey| key.kid.is_none() || kid.is_none() || key.kid == *kid;
        let mut named = self.keys.iter().filter(named).peekable();
        if named.peek().is_none() {
            let rejection = Rejection::invalid(Reason::Key, "no key has the token's kid");
            return Err(Unverifiable::NoSuchKey(rejection));
        }
        let mut usable = named.filter(|key| key.algorithms.contains(alg)).peekable();
        if usable.peek().is_none() {
            let text =
                format!("the token's alg {} is not allowed (auth.jwt.algorithms)", algorithm_name(*alg));
            return Err(Unverifiable::Refused(Rejection::Invalid(Reason::Algorithm, text)));
        }
        for key in usable {
            match decode(token.token, key) {
                Ok(claims) => return Ok(claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Err(Unverifiable::Refused(malformed(&error))),
            }
        }
        let text = "the token's signature was not made with a key of this broker's";
        let rejection = Rejection::invalid(Reason::Signature, text);
        Err(match kid {
            None => Unverifiable::NoSuchKey(rejection),
            Some(_) => Unverifiable::Refused(rejection),
        })
    }
}

/// The curve of a point of this many bytes, uncompressed (SEC 1, section 2.3.3).
pub(super) fn curve_of(point_bytes: usize) -> Option<KeyKind> {
    match point_bytes {
        65 => Some(KeyKind::P256),
        97 => Some(KeyKind::P384),
        _ => None,
    }
}

/// Verifies the signature only: the claims are checked by `claims.rs`, against a time that is handed in.
fn decode(token: &str, key: &VerifyingKey) -> Result<Claims, jsonwebtoken::errors::Error> {
    let mut validation = Validation::default();
    validation.algorithms.clone_from(&key.algorithms);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map(|token| token.claims)
}

fn malformed(error: &jsonwebtoken::errors::Error) -> Rejection {
    let ErrorKind::Json(_) = error.kind() else {
        return Rejection::invalid(Reason::Malformed, "the token is malformed");
    };
    let text = "a claim of the token is not of its type, as in \"exp\": 1900000000, \"sub\": \"42\" and \
                \"headwater\": {\"subscribe\": [\"news.*\"]}";
    Rejection::invalid(Reason::Claims, text)
}

//! Tokens as an issuer makes them, and as those make them who are none.
//!
//! They are put together here by hand from RFC 7515, so that the product's own library proves nothing about itself.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac, rand, signature};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};

/// Long enough for HS256.
pub(crate) const SECRET: &str = "a secret that is only used by tests of Headwater";

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs()
}

/// Claims of a user who may subscribe and publish to these patterns for the next hour.
pub(crate) fn claims(sub: &str, subscribe: &[&str], publish: &[&str]) -> Value {
    json!({
        "sub": sub,
        "exp": now() + 3_600,
        "headwater": {"subscribe": subscribe, "publish": publish},
    })
}

/// Claims of an administrator.
pub(crate) fn admin_claims() -> Value {
    json!({"sub": "root", "exp": now() + 3_600, "headwater": {"admin": true}})
}

/// Signed with [`SECRET`].
pub(crate) fn token(claims: &Value) -> String {
    hs256(SECRET.as_bytes(), &json!({"alg": "HS256", "typ": "JWT"}), claims)
}

/// Signed with any secret, under any header.
pub(crate) fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = message(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", base64url(tag.as_ref()))
}

/// Not signed at all.
pub(crate) fn unsigned(claims: &Value) -> String {
    message(&json!({"alg": "none", "typ": "JWT"}), claims) + "."
}

/// The SHA-256 of an API key, as the configuration wants it.
pub(crate) fn sha256(key: &str) -> String {
    let mut text = String::new();
    for byte in digest::digest(&digest::SHA256, key.as_bytes()).as_ref() {
        write!(text, "{byte:02x}").expect("a String takes text");
    }
    text
}

/// An issuer with an RSA key.
pub(crate) struct RsaIssuer {
    pair: KeyPair,
    signer: signature::RsaKeyPair,
}

impl RsaIssuer {
    /// With a key of its own.
    pub(crate) fn new() -> Self {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("an RSA key");
        let signer = signature::RsaKeyPair::from_pkcs8(&pair.serialize_der()).expect("its own key");
        Self { pair, signer }
    }

    /// What verifies its tokens, in PEM.
    pub(crate) fn public_key(&self) -> String {
        self.pair.public_key_pem()
    }

    /// A token with RS256.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_of("k", claims)
    }

    /// A token that names its key.
    pub(crate) fn token_of(&self, kid: &str, claims: &Value) -> String {
        let message = message(&json!({"alg": "RS256", "typ": "JWT", "kid": kid}), claims);
        let mut signature = vec![0; self.signer.public_modulus_len()];
        let random = rand::SystemRandom::new();
        let signed =
            self.signer.sign(&signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature);
        signed.expect("an RSA key signs");
        format!("{message}.{}", base64url(&signature))
    }

    /// Its key as an entry of a key set.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let public = signature::KeyPair::public_key(&self.signer);
        let part = |bytes: &[u8]| base64url(bytes);
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid,
            "n": part(public.modulus().big_endian_without_leading_zero()),
            "e": part(public.exponent().big_endian_without_leading_zero()),
        })
    }
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()))
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

#[test]
fn base64url_is_that_of_the_standard() {
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg"),
        ("fo", "Zm8"),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg"),
        ("\u{fb}\u{ff}", "w7vDvw"),
    ] {
        assert_eq!(base64url(bytes.as_bytes()), text);
    }
}

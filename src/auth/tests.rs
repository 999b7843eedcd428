//! Tokens and keys as attackers and issuers present them.

use std::collections::BTreeMap;

use jsonwebtoken::{EncodingKey, Header};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm};
use serde_json::{Value, json};

use super::keys::{ALGORITHMS, algorithm_name};
use super::*;
use crate::channel::Channel;

use self::Algorithm::{ES256, EdDSA, PS256, RS256, RS512};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW_MS: u64 = 1_700_000_000_500;
const NOW: u64 = NOW_MS / 1_000;

struct Pair {
    private: KeyPair,
}

impl Pair {
    fn of(algorithm: &'static SignatureAlgorithm) -> Self {
        Self { private: KeyPair::generate_for(algorithm).unwrap() }
    }

    fn public(&self) -> String {
        self.private.public_key_pem()
    }

    fn sign(&self, algorithm: Algorithm, claims: &Value) -> String {
        let pem = self.private.serialize_pem();
        let key = match algorithm_name(algorithm).as_bytes() {
            [b'R' | b'P', ..] => EncodingKey::from_rsa_pem(pem.as_bytes()),
            [b'E', b'S', ..] => EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key.unwrap()).unwrap()
    }
}

fn hmac(secret: &[u8], claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn policy() -> TokenPolicy {
    TokenPolicy { lifetime_max: Duration::from_secs(86_400), ..TokenPolicy::default() }
}

fn access(keys: KeySet, policy: TokenPolicy) -> Access {
    let keys = KeyStore::Fixed(RwLock::new(Arc::new(keys)));
    Access::guarded(Vec::new(), Some(Tokens { keys, policy }), Vec::new())
}

fn with_secret() -> Access {
    access(KeySet::of_secret(SECRET.as_bytes(), &[]).unwrap(), policy())
}

async fn identify(access: &Access, token: &str) -> Result<Caller, Rejection> {
    access.identify(Some(token), NOW_MS).await
}

fn good() -> Value {
    json!({"sub": "u", "exp": NOW + 60, "headwater": {"subscribe": ["a"]}})
}

fn is_invalid<T>(result: &Result<T, Rejection>) -> bool {
    matches!(result, Err(Rejection::Invalid(..)))
}

/// Seen to fail with the algorithms taken from the token's header.
#[tokio::test]
async fn every_algorithm_verifies_with_its_kind_of_key_and_no_other() {
    let rsa = Pair::of(&PKCS_RSA_SHA256);
    let (p256, ed) = (Pair::of(&PKCS_ECDSA_P256_SHA256), Pair::of(&PKCS_ED25519));
    for (pair, algorithm) in [(&rsa, RS256), (&rsa, PS256), (&rsa, RS512), (&p256, ES256), (&ed, EdDSA)] {
        let token = pair.sign(algorithm, &good());
        let only = access(KeySet::of_pem(&pair.public(), &[algorithm]).unwrap(), policy());
        assert_eq!(identify(&only, &token).await.unwrap().user().map(|u| &**u), Some("u"));
        // Without a word from the configuration it is the algorithm of the kind.
        let default = access(KeySet::of_pem(&pair.public(), &[]).unwrap(), policy());
        let is_default = [RS256, ES256, EdDSA].contains(&algorithm);
        assert_eq!(identify(&default, &token).await.is_ok(), is_default, "{algorithm:?}");
        for other in [&rsa, &p256, &ed].iter().filter(|other| !std::ptr::eq(**other, pair)) {
            let keys = access(KeySet::of_pem(&other.public(), &[]).unwrap(), policy());
            assert!(is_invalid(&identify(&keys, &token).await), "{algorithm:?}");
        }
    }
    assert!(KeySet::of_pem(&rsa.public(), &[ES256]).unwrap_err().contains("RS256, RS384"));
    assert!(KeySet::of_pem(&rsa.private.serialize_pem(), &[]).unwrap_err().contains("private key"));
    assert!(KeySet::of_pem("not PEM", &[]).unwrap_err().contains("P-256"));
}

/// Two checks stand in the way, ours and the library's: either alone holds.
#[tokio::test]
async fn neither_none_nor_a_public_key_taken_for_a_secret_makes_a_token() {
    let rsa = Pair::of(&PKCS_RSA_SHA256);
    let keys = access(KeySet::of_pem(&rsa.public(), &[]).unwrap(), policy());
    let public = rsa.public();
    let body = public.lines().filter(|line| !line.starts_with("--")).collect::<String>();
    for secret in [public.as_bytes(), public.trim_end().as_bytes(), body.as_bytes()] {
        assert!(is_invalid(&identify(&keys, &hmac(secret, &good())).await));
    }
    let signed = hmac(SECRET.as_bytes(), &good());
    let payload = signed.split('.').nth(1).unwrap();
    // {"alg":"none"}, {"alg":"None","typ":"JWT"}
    for header in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIiwidHlwIjoiSldUIn0"] {
        for signature in ["", signed.rsplit('.').next().unwrap()] {
            let token = format!("{header}.{payload}.{signature}");
            assert!(is_invalid(&identify(&with_secret(), &token).await), "{token}");
        }
    }
    let critical = Header { crit: Some(vec!["exp".to_owned()]), ..Header::default() };
    let token =
        jsonwebtoken::encode(&critical, &good(), &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    assert!(is_invalid(&identify(&with_secret(), &token).await), "a critical extension is not understood");
}

/// Seen to fail without the longest lifetime, with an `exp` that is passed over, with an `iat` that may lie in the future
/// (and moved the end there with it), and with a `jti` that cannot be revoked.
#[tokio::test]
async fn a_token_counts_from_nbf_until_the_earlier_of_exp_and_the_longest_lifetime() {
    let day = 86_400;
    // Changes to a good token, and whether it counts with a leeway of 0 s and of 10 s.
    let cases = [
        (json!({}), true, true),
        (json!({"exp": NOW + 1}), true, true),
        (json!({"exp": NOW}), false, true),
        (json!({"exp": NOW - 9}), false, true),
        (json!({"exp": NOW - 10}), false, false),
        (json!({"exp": (NOW as f64) + 0.75}), true, true),
        (json!({"exp": 1e300}), true, true),
        (json!({"exp": u64::MAX}), true, true),
        (json!({"exp": -5}), false, false),
        (json!({"exp": null}), false, false),
        (json!({"exp": (NOW + 60).to_string()}), false, false),
        (json!({"nbf": NOW}), true, true),
        (json!({"nbf": NOW + 10}), false, true),
        (json!({"nbf": NOW + 11}), false, false),
        (json!({"iat": NOW}), true, true),
        (json!({"iat": NOW + 1, "exp": NOW + 10 * day}), false, true),
        (json!({"iat": NOW + 11, "exp": NOW + 10 * day}), false, false),
        (json!({"jti": "t".repeat(256)}), true, true),
        (json!({"jti": "t".repeat(257)}), false, false),
        (json!({"jti": "a\nb"}), false, false),
        (json!({"iat": NOW - day + 1, "exp": NOW + 10 * day}), true, true),
        (json!({"iat": NOW - day - 1, "exp": NOW + 10 * day}), false, true),
        (json!({"iat": NOW - 2 * day, "exp": NOW + 10 * day}), false, false),
        (json!({"sub": 7}), false, false),
        (json!({"sub": ""}), false, false),
        (json!({"sub": "a\nb"}), false, false),
        (json!({"headwater": {"subscribe": "a"}}), false, false),
        (json!({"headwater": null}), true, true),
        (json!({"aud": ["x", "y"], "iss": "z", "more": {}}), true, true),
    ];
    for (changes, strict, lenient) in cases {
        let mut claims = good();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let token = hmac(SECRET.as_bytes(), &claims);
        for (leeway, expected) in [(0, strict), (10, lenient)] {
            let policy = TokenPolicy { leeway: Duration::from_secs(leeway), ..policy() };
            let keys = KeySet::of_secret(SECRET.as_bytes(), &[]).unwrap();
            let found = identify(&access(keys, policy), &token).await;
            assert_eq!(found.is_ok(), expected, "{changes} leeway {leeway}: {found:?}");
        }
    }
    let found = identify(&with_secret(), &hmac(SECRET.as_bytes(), &json!({"exp": NOW - 1}))).await;
    assert!(matches!(found, Err(Rejection::Expired(_))));
}

/// Seen to fail with an audience that is not compared.
#[tokio::test]
async fn issuer_and_audience_count_once_they_are_configured() {
    let policy =
        TokenPolicy { issuers: vec!["i".into()], audiences: vec!["a".into(), "b".into()], ..policy() };
    let keys = access(KeySet::of_secret(SECRET.as_bytes(), &[]).unwrap(), policy);
    for (changes, accepted) in [
        (json!({"iss": "i", "aud": "b"}), true),
        (json!({"iss": "i", "aud": ["x", "a"]}), true),
        (json!({"iss": "i", "aud": ["x"]}), false),
        (json!({"iss": "i", "aud": []}), false),
        (json!({"iss": "i"}), false),
        (json!({"aud": "a"}), false),
        (json!({"iss": "I", "aud": "a"}), false),
    ] {
        let mut claims = good();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let found = identify(&keys, &hmac(SECRET.as_bytes(), &claims)).await;
        assert_eq!(found.is_ok(), accepted, "{changes}");
    }
}

#[tokio::test]
async fn a_caller_has_the_rights_of_its_credential_and_everybodys() {
    let channel = |name: &str| Channel::parse_stored(name).unwrap();
    let granted = Granted { subscribe: vec!["b.{sub}".into()], publish: vec!["*".into()], admin: false };
    let key = ApiKey { name: "k".into(), sha256: KeyHash::of("the key"), granted };
    let keys = KeyStore::Fixed(RwLock::new(Arc::new(KeySet::of_secret(SECRET.as_bytes(), &[]).unwrap())));
    let tokens = Tokens { keys, policy: policy() };
    let access = Access::guarded(vec![key], Some(tokens), vec!["public.*".into()]);

    let anonymous = access.identify(None, NOW_MS).await.unwrap();
    assert!(anonymous.is_anonymous() && anonymous.may_subscribe(&channel("public.a")));
    assert!(!anonymous.may_subscribe(&channel("a")) && !anonymous.may_publish(&channel("public.a")));

    let program = identify(&access, "the key").await.unwrap();
    assert!(program.may_publish(&channel("a")) && !program.may_publish(&channel("$user:1")));
    assert!(program.may_subscribe(&channel("public.a")) && !program.may_subscribe(&channel("b.")));
    assert!(program.is_operator() && !program.is_admin() && program.user().is_none());

    let claims =
        json!({"sub": "u*", "exp": NOW + 9, "headwater": {"subscribe": ["b.{sub}"], "publish": ["$user:*"]}});
    let user = identify(&access, &hmac(SECRET.as_bytes(), &claims)).await.unwrap();
    assert!(user.may_subscribe(&channel("b.u*")) && !user.may_subscribe(&channel("b.ux")));
    assert!(user.may_publish(&channel("$user:9")) && !user.may_publish(&channel("a")));
    assert_eq!(user.ends_at_ms(), Some((NOW + 9) * 1_000));

    let admin = json!({"exp": NOW + 9, "headwater": {"admin": true}});
    let admin = identify(&access, &hmac(SECRET.as_bytes(), &admin)).await.unwrap();
    assert!(admin.may_subscribe(&channel("x")) && admin.may_publish(&channel("$conn:1")));
    for wrong in ["", "the kez", "a.b", "a.b.c", "..", "{}.{}.{}"] {
        assert!(is_invalid(&identify(&access, wrong).await), "{wrong:?}");
    }
}

/// Seen to fail with a caller that is not looked up among the revocations.
#[tokio::test]
async fn a_revocation_counts_until_its_end_and_can_be_lifted() {
    let access = with_secret();
    let claims = json!({"sub": "u", "jti": "t", "exp": NOW + 60});
    let token = hmac(SECRET.as_bytes(), &claims);
    let caller = identify(&access, &token).await.unwrap();
    for target in ["jti:t", "sub:u"] {
        let target: revocation::Target = target.parse().unwrap();
        let until = |until_ms| revocation::Revocation { target: target.clone(), until_ms };
        access.revocations.put(until(NOW_MS + 5_000), NOW_MS);
        assert_eq!(identify(&access, &token).await.unwrap_err(), Rejection::Revoked);
        assert_eq!(access.still_valid(&caller, NOW_MS + 4_999), Err(Rejection::Revoked));
        assert_eq!(access.still_valid(&caller, NOW_MS + 5_000), Ok(()));
        access.revocations.put(until(NOW_MS), NOW_MS);
        assert!(identify(&access, &token).await.is_ok() && access.revocations.list(NOW_MS).is_empty());
    }
    access
        .revocations
        .put(revocation::Revocation { target: "sub:x".parse().unwrap(), until_ms: u64::MAX }, NOW_MS);
    assert!(identify(&access, &token).await.is_ok(), "others are not concerned");
}

#[test]
fn of_a_key_set_only_what_verifies_is_taken() {
    let oct = |kid: &str, extra: Value| {
        let mut key = json!({"kty": "oct", "kid": kid, "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"});
        key.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        key
    };
    let set = json!({"keys": [
        oct("a", json!({})),
        oct("enc", json!({"use": "enc"})),
        oct("b", json!({"alg": "HS512", "use": "sig"})),
        {"kty": "what"}, 7, {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
    ]});
    let parsed = KeySet::of_jwks(set.to_string().as_bytes(), &[]).unwrap();
    assert_eq!(parsed.algorithms(), ["HS256", "HS512"]);
    assert!(!parsed.has_weak_secret());
    for (bytes, is_weak) in [("MDEyMw", true), ("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQ", true)] {
        let set = json!({"keys": [oct("a", json!({})), oct("b", json!({"k": bytes}))]}).to_string();
        assert_eq!(KeySet::of_jwks(set.as_bytes(), &[]).unwrap().has_weak_secret(), is_weak, "{bytes}");
    }
    let empty = json!({"keys": [oct("a", json!({"k": ""}))]}).to_string();
    assert!(KeySet::of_jwks(empty.as_bytes(), &[]).is_err(), "nothing is no secret");
    for nothing in ["", "[]", "{}", "{\"keys\":[]}", "{\"keys\":[7]}"] {
        assert!(KeySet::of_jwks(nothing.as_bytes(), &[]).is_err(), "{nothing}");
    }
    let many = json!({"keys": vec![oct("a", json!({})); 101]}).to_string();
    assert!(KeySet::of_jwks(many.as_bytes(), &[]).unwrap_err().contains("at most 100"));
    assert!(
        jwks::parse(set.to_string().as_bytes(), jwks::Publicity::Public, &[]).is_err(),
        "a public secret is none"
    );
}

#[tokio::test]
async fn a_minted_token_says_what_was_ordered() {
    let order = mint::Order {
        sub: Some("u".into()),
        jti: "t".into(),
        ttl: Duration::from_secs(60),
        granted: Granted { subscribe: vec!["a".into()], ..Granted::default() },
        issuer: None,
        audience: None,
    };
    let token = mint::mint(SECRET.as_bytes(), Algorithm::HS256, &order, NOW_MS).unwrap();
    let caller = identify(&with_secret(), &token).await.unwrap();
    assert_eq!((caller.token_id(), caller.ends_at_ms()), (Some("t"), Some((NOW + 60) * 1_000)));
    assert!(mint::mint(SECRET.as_bytes(), RS256, &order, NOW_MS).is_err());
}

proptest! {
    #[test]
    fn any_text_is_refused_without_a_panic(
        token in prop_oneof!["\\PC{0,80}", "[A-Za-z0-9_.=-]{0,80}", "ey[A-Za-z0-9_-]{0,40}\\.ey[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}"]
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert!(is_invalid(&runtime.block_on(identify(&with_secret(), &token))));
    }

    /// One changed character anywhere in a good token makes it a bad one. Seen to fail with a signature that is not
    /// verified.
    #[test]
    fn a_token_that_was_touched_is_refused(at: prop::sample::Index, to in "[A-Za-z0-9_-]") {
        let token = hmac(SECRET.as_bytes(), &good());
        let at = at.index(token.len());
        let touched = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assume!(touched != token && !token[at..].starts_with('.'));
        // The last character of a part may hold bits that decode to nothing.
        let last = token[at + 1..].is_empty() || token[at + 1..].starts_with('.');
        prop_assume!(!last);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert!(is_invalid(&runtime.block_on(identify(&with_secret(), &touched))));
    }
}

#[test]
fn the_names_of_algorithms_are_those_of_the_standard() {
    let names: BTreeMap<&str, Algorithm> = ALGORITHMS.into_iter().collect();
    assert_eq!(names.len(), ALGORITHMS.len());
    for (name, algorithm) in names {
        assert_eq!(name.parse::<Algorithm>().unwrap(), algorithm);
        assert_eq!(algorithm_name(algorithm), name);
    }
}

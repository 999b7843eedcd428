//! Start-up checks: what `INFO` says about the server, before anything is written.
//!
//! Refused: a server older than 7.0 (no functions, no `XADD <ms>-*`) and an eviction policy that may delete
//! channels. Everything else, such as missing persistence or an `INFO` that is not allowed, is a warning.

use fred::clients::Client;
use fred::types::Value;

use super::connection::{Effect, call};
use super::value::Reply;
use crate::log::LogError;

/// Oldest server that has what the layout needs.
const VERSION_MIN: (u32, u32) = (7, 0);

/// Refuses a server that would lose events; answers warnings in words.
pub(super) async fn check_server(client: &Client, allow_eviction: bool) -> Result<Vec<String>, LogError> {
    let mut info = String::new();
    for section in ["server", "memory", "persistence", "replication"] {
        match call(client, Effect::Read, "INFO", vec![Value::from(section)]).await {
            Ok(text) => info.push_str(&text.text().unwrap_or_default()),
            Err(LogError::Unavailable(error)) => return Err(LogError::Unavailable(error)),
            Err(error) => {
                return Ok(vec![format!(
                    "Redis does not answer INFO ({error}): version, eviction policy and persistence are unchecked"
                )]);
            }
        }
    }
    judge(&info, allow_eviction)
}

fn judge(info: &str, allow_eviction: bool) -> Result<Vec<String>, LogError> {
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mut warnings = Vec::new();
    match value("redis_version").and_then(parse_version) {
        Some(version) if version < VERSION_MIN => {
            return Err(LogError::Refused(format!(
                "Redis {}.{} is too old: Headwater needs Redis {}.{} or newer, because it calls Redis Functions",
                version.0, version.1, VERSION_MIN.0, VERSION_MIN.1
            )));
        }
        Some(_) => {}
        None => warnings.push("Redis does not tell its version".to_owned()),
    }
    match value("maxmemory_policy").map(str::trim) {
        Some("noeviction") | None => {}
        Some(policy) if allow_eviction => warnings.push(format!(
            "maxmemory-policy is {policy}: when memory runs out Redis deletes whole channels without a trace"
        )),
        Some(policy) => {
            return Err(LogError::Refused(format!(
                "maxmemory-policy is {policy}, so Redis may delete channels when memory runs out (they carry an \
                 expiry, volatile-* deletes them too): set it to noeviction, or accept that with \
                 redis.allow_eviction = true"
            )));
        }
    }
    if value("aof_enabled").map(str::trim) == Some("0") {
        warnings.push(
            "Redis has no append-only file: when it dies, events since its last snapshot are lost \
             (set appendonly yes)"
                .to_owned(),
        );
    }
    if value("role").map(str::trim) == Some("slave") {
        return Err(LogError::Refused(
            "this Redis is a replica: point redis.url at the primary, or at Sentinel".to_owned(),
        ));
    }
    Ok(warnings)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, policy: &str, aof: &str) -> String {
        format!(
            "redis_version:{version}\r\nmaxmemory_policy:{policy}\r\naof_enabled:{aof}\r\nrole:master\r\n"
        )
    }

    #[test]
    fn only_what_would_lose_events_refuses_to_start() {
        assert_eq!(judge(&info("7.0.15", "noeviction", "1"), false).unwrap(), Vec::<String>::new());
        assert!(judge(&info("7.0.15", "noeviction", "0"), false).unwrap()[0].contains("appendonly"));
        let error = judge(&info("6.2.1", "noeviction", "1"), false).unwrap_err().to_string();
        assert!(error.contains("6.2 is too old"), "{error}");
        for policy in ["allkeys-lru", "volatile-ttl"] {
            let error = judge(&info("7.2.0", policy, "1"), false).unwrap_err().to_string();
            assert!(error.contains(policy) && error.contains("redis.allow_eviction"), "{error}");
            assert!(judge(&info("7.2.0", policy, "1"), true).unwrap()[0].contains(policy));
        }
        assert_eq!(judge("", false).unwrap().len(), 1, "a version that is not told is a warning");
    }
}

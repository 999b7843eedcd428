//! Configuration as its users meet it: files, variables and flags in, values or one readable error out.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::channel::Channel;
use crate::log::Retention;

struct Given {
    directory: tempfile::TempDir,
    sources: Sources,
}

fn given() -> Given {
    Given {
        directory: tempfile::tempdir().unwrap(),
        sources: Sources::defaults(NodeId::parse("node-1").unwrap()),
    }
}

impl Given {
    fn file(mut self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.sources.files.push(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, name: &'static str, key: &'static str, value: &str) -> Self {
        self.sources.flags.push(Flag { name, key, value: value.into() });
        self
    }

    fn load(&self) -> Config {
        Config::load(&self.sources).unwrap_or_else(|e| panic!("{e}"))
    }

    fn refusal(&self) -> String {
        match Config::load(&self.sources) {
            Ok(config) => panic!("accepted:\n{}", config.to_toml()),
            Err(e) => e.to_string(),
        }
    }
}

fn in_file(text: &str) -> Given {
    given().file("headwater.toml", text)
}

#[test]
fn the_defaults_are_what_the_contract_says() {
    let config = given().load();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.node_id.as_str(), "node-1");
    assert_eq!(config.server.header_timeout, Duration::from_secs(10));
    assert!(config.redis.url.is_none());
    assert_eq!((config.redis.prefix.as_str(), config.redis.partitions, config.redis.pool_size), ("hw", 1, 4));
    assert!(!config.redis.allow_eviction);
    assert_eq!(config.embedded.data_dir.to_str(), Some("./headwater-data"));
    assert_eq!(config.retention.max_length, Some(1_000));
    assert_eq!(config.retention.max_age, Some(Duration::from_secs(24 * 3_600)));
    assert_eq!(config.sse.heartbeat_interval, Duration::from_secs(30));
    assert_eq!(config.sse.heartbeat, sse::Heartbeat::Event);
    assert_eq!(config.sse.retry, Duration::from_secs(3));
    assert_eq!(config.sse.write_timeout, Duration::from_secs(30));
    assert_eq!(config.sse.lifetime_max, None);
    let publish = &config.publish;
    assert_eq!((publish.event_bytes_max, publish.batch_events_max), (262_144, 1_000));
    assert_eq!((publish.batch_bytes_max, publish.idempotency_window), (4_194_304, Duration::from_secs(600)));
    let fanout = &config.fanout;
    assert_eq!((fanout.ring_events, fanout.ring_bytes, fanout.memory_bytes_max), (1_024, 1 << 20, 1 << 28));
    let auth = &config.auth;
    assert!(!auth.open && auth.has_no_key() && !auth.protect_metrics && auth.anonymous_subscribe.is_empty());
    assert_eq!(auth.cookie, "headwater_token");
    assert_eq!((auth.jwt.leeway, auth.jwt.lifetime_max), (Duration::ZERO, Duration::from_secs(24 * 3_600)));
    let limits = &config.limits;
    assert_eq!((limits.connections_max, limits.channels_per_connection), (None, 100));
    assert_eq!((limits.connections_per_ip, limits.connections_per_user), (None, None));
    assert_eq!((limits.connect_rate, limits.publish_rate), (None, None));
    assert!(config.server.trusted_proxies.is_empty());
    assert_eq!(config.cors.allowed_origins, cors::AllowedOrigins::Listed(vec![]));
    assert_eq!((config.drain.delay, config.drain.deadline), (Duration::ZERO, Duration::from_secs(10)));
    assert_eq!(config.telemetry.log_format, telemetry::LogFormat::Text);
}

#[test]
fn flags_win_over_variables_over_later_files_over_earlier_files_over_defaults() {
    let all = given()
        .file("1.toml", "[sse]\nretry = '1s'\nwrite_timeout = '1s'\n[redis]\nprefix = 'a'\n[server]\nlisten = '127.0.0.1:1'")
        .file("2.toml", "[sse]\nretry = '2s'\n[redis]\nprefix = 'b'\n[server]\nlisten = '127.0.0.1:2'")
        .variable("HEADWATER_REDIS__PREFIX", "c")
        .variable("HEADWATER_SERVER__LISTEN", "127.0.0.1:3")
        .flag("--listen", "server.listen", "127.0.0.1:4");
    let config = all.load();
    assert_eq!(config.sse.heartbeat_interval, Duration::from_secs(30));
    assert_eq!(config.sse.write_timeout, Duration::from_secs(1));
    assert_eq!(config.sse.retry, Duration::from_secs(2));
    assert_eq!(config.redis.prefix, "c");
    assert_eq!(config.server.listen.port(), 4);

    assert_eq!(config.source_of("sse.heartbeat_interval"), Source::Default);
    assert_eq!(config.source_of("sse.write_timeout"), Source::File(all.sources.files[0].clone()));
    assert_eq!(config.source_of("sse.retry"), Source::File(all.sources.files[1].clone()));
    assert_eq!(config.source_of("redis.prefix"), Source::Environment("HEADWATER_REDIS__PREFIX".into()));
    assert_eq!(config.source_of("server.listen"), Source::Flag("--listen"));
    assert_eq!(config.source_of("server.node_id"), Source::Generated);
}

#[test]
fn an_unknown_key_names_itself_its_source_and_the_key_that_was_meant() {
    let cases = [
        (
            "[sse]\nhartbeat_interval = '1s'",
            "unknown key sse.hartbeat_interval; did you mean sse.heartbeat_interval?",
        ),
        ("[ssse]\nretry = '1s'", "unknown key ssse; did you mean sse?"),
        ("[server]\nretry = '1s'", "unknown key server.retry; did you mean sse.retry?"),
        ("listen = '127.0.0.1:1'", "unknown key listen; did you mean server.listen?"),
        (
            "[[retention.rules]]\npattern = 'a'\nmax_lenght = 1",
            "unknown key retention.rules.0.max_lenght; did you mean retention.rules.0.max_length?",
        ),
        ("[server]\nfrobnicate = 1", "unknown key server.frobnicate"),
        ("[tlss]\ncert_file = 'x'", "unknown key tlss; did you mean tls?"),
        ("[origins]\nx = 1", "unknown key origins"),
    ];
    for (text, expected) in cases {
        let given = in_file(text);
        let path = given.sources.files[0].display().to_string();
        assert_eq!(given.refusal(), format!("file {path}: {expected}"));
    }
    let cases = [
        ("HEADWATER_SSE__RETRI", "unknown key sse.retri; did you mean sse.retry?"),
        ("HEADWATER_FOO__BAR", "unknown key foo"),
        ("HEADWATER___", "unknown key "),
        ("HEADWATER_REDIS__", "unknown key redis."),
    ];
    for (name, expected) in cases {
        let refusal = given().variable(name, "1").refusal();
        assert!(refusal.starts_with(&format!("environment variable {name}: {expected}")), "{refusal}");
    }
}

#[test]
fn only_our_variables_with_a_double_underscore_are_configuration() {
    let config = given()
        .variable("HEADWATER_PORT", "tcp://10.0.0.1:8080")
        .variable("HEADWATER_SERVICE_HOST", "10.0.0.1")
        .variable("HEADWATER_URL", "http://x")
        .variable("OTHER_SSE__RETRY", "1s")
        .variable("XHEADWATER_SSE__RETRY", "1s")
        .load();
    assert_eq!(config.sse.retry, Duration::from_secs(3));
}

#[test]
fn variables_are_read_as_toml_and_as_text_where_that_does_not_fit() {
    let of = |name: &str, value: &str| given().variable(name, value).load();
    let origins = of("HEADWATER_CORS__ALLOWED_ORIGINS", r#"["https://app.example", "http://localhost:1"]"#);
    assert!(origins.cors.allowed_origins.allows("https://app.example"));
    assert!(origins.cors.allowed_origins.allows("http://localhost:1"));
    assert!(!origins.cors.allowed_origins.allows("https://app.example:8443"));

    for (value, password) in [
        ("12345", "12345"),
        ("007", "007"),
        ("true", "true"),
        ("1.50", "1.50"),
        ("[x", "[x"),
        ("[1]", "[1]"),
        ("\"quoted\"", "quoted"),
        ("a\"b", "a\"b"),
        ("1979-05-27", "1979-05-27"),
        ("p#s", "p#s"),
        ("", ""),
    ] {
        let config = of("HEADWATER_REDIS__PASSWORD", value);
        assert_eq!(config.redis.password.unwrap().expose(), password, "{value}");
    }
    assert_eq!(of("HEADWATER_SSE__RETRY", "5s").sse.retry, Duration::from_secs(5));
    assert_eq!(of("HEADWATER_SSE__RETRY", "\"5s\"").sse.retry, Duration::from_secs(5));
    assert_eq!(
        of("headwater_sse__retry", "5s").sse.retry,
        Duration::from_secs(3),
        "the prefix is upper case"
    );
    assert!(of("HEADWATER_AUTH__OPEN", "true").auth.open);
    assert_eq!(of("HEADWATER_REDIS__POOL_SIZE", "7").redis.pool_size, 7);
    let rules = of("HEADWATER_RETENTION__RULES", r#"[{ pattern = "a.*", max_length = "none" }]"#);
    assert_eq!(rules.retention.rules.len(), 1);

    let refusal = given().variable("HEADWATER_CORS__ALLOWED_ORIGINS", "https://app.example").refusal();
    assert!(refusal.contains("expected a list, as in [\"a\", \"b\"]"), "{refusal}");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let mut given = given();
    given.sources.environment.push(("HEADWATER_REDIS__PREFIX".into(), OsString::from_vec(vec![0xff])));
    given.sources.environment.push((OsString::from_vec(vec![0xff]), "ignored".into()));
    assert_eq!(given.refusal(), "environment variable HEADWATER_REDIS__PREFIX is not UTF-8");
}

/// A file's text, and how the refusal goes on after the file's name.
const REFUSED_VALUES: &[(&str, &str)] = &[
    ("[sse]\nheartbeat_interval = '0s'", "sse.heartbeat_interval: must lie between 10ms and 1h, not \"0s\""),
    (
        "[sse]\nheartbeat_interval = 30",
        "sse.heartbeat_interval: a duration needs its unit, as in \"30s\" or \"30ms\"",
    ),
    ("[sse]\nheartbeat_interval = 'soon'", "sse.heartbeat_interval: \"soon\" is not a duration such as"),
    (
        "[sse]\nheartbeat_interval = true",
        "sse.heartbeat_interval: expected a duration such as \"30s\", found bool true",
    ),
    ("[sse]\nheartbeat = 'ping'", "sse.heartbeat: expected \"event\" or \"comment\", found \"ping\""),
    ("[sse]\nlifetime_max = 'never'", "sse.lifetime_max: \"never\" is not a duration"),
    ("[fanout]\nring_events = 0", "fanout.ring_events: must lie between 1 and 1000000, not 0"),
    ("[fanout]\nring_events = -1", "fanout.ring_events: must lie between 1 and 1000000, not -1"),
    ("[fanout]\nring_events = '10'", "fanout.ring_events: expected a whole number, found the text \"10\""),
    ("[fanout]\nring_events = 1.5", "fanout.ring_events: expected a whole number, found"),
    (
        "[fanout]\nring_bytes = 2000000\nmemory_bytes_max = 1100000",
        "fanout.memory_bytes_max: must be at least fanout.ring_bytes (2000000)",
    ),
    ("[redis]\npartitions = 0", "redis.partitions: must lie between 1 and 1024, not 0"),
    ("[redis]\nprefix = 'a{b}'", "redis.prefix: a prefix has 1 to 64 characters"),
    ("[redis]\nurl = 'rediss://h'", "redis.url: this release speaks to Redis without TLS only"),
    ("[server]\nlisten = 'localhost'", "server.listen: \"localhost\" is not an IP address and a port"),
    ("[server]\nnode_id = 'a b'", "server.node_id: node id \"a b\" contains ' '"),
    ("[retention]\nmax_length = 0", "retention.max_length: must lie between 1 and 1000000000, not 0"),
    (
        "[retention]\nmax_length = 'all'",
        "retention.max_length: expected a whole number, or \"none\" for no limit, found \"all\"",
    ),
    (
        "[retention]\nmax_age = 5",
        "retention.max_age: a duration needs its unit, as in \"5s\"; no limit is written \"none\"",
    ),
    ("[[retention.rules]]\nmax_length = 1", "retention.rules.0: the key pattern is missing"),
    (
        "[[retention.rules]]\npattern = 'a,b'",
        "retention.rules.0.pattern: pattern \"a,b\" can match no channel",
    ),
    (
        "[publish]\nbatch_bytes_max = 1000",
        "publish.batch_bytes_max: must be at least publish.event_bytes_max (262144)",
    ),
    ("[publish]\nidempotency_window = '25h'", "publish.idempotency_window: must lie between 100ms and 1day"),
    (
        "[embedded]\ndata_dir = ''",
        "embedded.data_dir: is empty; name a directory, \".\" for the one you are in",
    ),
    ("[limits]\nconnect_rate = '10'", "limits.connect_rate: \"10\" is no rate, as in \"100/s\""),
    ("[server]\ntrusted_proxies = ['proxy']", "server.trusted_proxies: \"proxy\" is no network"),
    ("[limits]\nconnections_max = 0", "limits.connections_max: must lie between 1 and 100000000, not 0"),
    (
        "[cors]\nallowed_origins = ['https://a/']",
        "cors.allowed_origins: \"https://a/\" never equals what a browser sends; write \"https://a\"",
    ),
    (
        "[cors]\nallowed_origins = ['*', 'https://a']",
        "cors.allowed_origins: \"*\" allows every origin and must stand alone",
    ),
    ("[cors]\nallowed_origins = '*'", "cors.allowed_origins: expected a list"),
    (
        "[auth]\nopen = true\n[auth.jwt]\nsecret = 'x'",
        "auth.open: a key is configured, so the broker is not open",
    ),
    (
        "[auth]\nanonymous_subscribe = ['*']",
        "auth.anonymous_subscribe: without a key everybody may do everything",
    ),
    ("[auth]\ncookie = 'a b'", "auth.cookie: \"a b\" is no name of a cookie"),
    ("[[auth.keys]]\nname = 'a'\nsha256 = 'the key'", "auth.keys.0.sha256: expected the SHA-256 of the key"),
    ("[[auth.keys]]\nname = 'a'", "auth.keys.0: the key sha256 is missing"),
    ("[auth.jwt]\nsecret = ''", "auth.jwt.secret: the secret is empty"),
    (
        "[auth.jwt]\nsecret = '-----BEGIN PUBLIC KEY-----'",
        "auth.jwt.secret: this is a key in PEM and no secret",
    ),
    ("[auth.jwt]\nsecret = 'x'\njwks_file = 'y'", "auth.jwt.jwks_file: auth.jwt.secret is set too; keep one"),
    (
        "[auth.jwt]\nsecret = 'x'\nalgorithms = ['RS256']",
        "auth.jwt.secret: the key is a secret: auth.jwt.algorithms may name HS256, HS384, HS512",
    ),
    ("[auth.jwt]\nsecret = 'x'\nalgorithms = ['none']", "auth.jwt.algorithms: \"none\" is none of HS256,"),
    (
        "[auth.jwt]\nissuer = 'https://issuer.example'",
        "auth.jwt.issuer: nothing says with which key tokens are verified",
    ),
    ("[auth.jwt]\npublic_key_file = '/nonexistent'", "auth.jwt.public_key_file: cannot read /nonexistent"),
    (
        "[auth.jwt]\njwks_url = 'http://issuer.example/keys'",
        "auth.jwt.jwks_url: http://issuer.example/keys: keys are fetched over https",
    ),
    ("[auth.jwt]\nleeway = '2h'", "auth.jwt.leeway: must lie between 0s and 1h"),
    ("[tls]\nkey_file = 'x'", "tls.key_file: tls.cert_file is missing beside it"),
    ("[tls]\ncert_file = '/nonexistent'\nkey_file = 'x'", "tls.cert_file: cannot read /nonexistent"),
    ("[telemetry]\nlog_filter = 'verbose'", "telemetry.log_filter: \"verbose\" is no log filter"),
    ("[telemetry]\nlog_format = 'xml'", "telemetry.log_format: expected \"text\" or \"json\", found \"xml\""),
    ("server = 1", "server: expected"),
];

#[test]
fn values_out_of_range_are_refused_in_words() {
    for (text, expected) in REFUSED_VALUES {
        let given = in_file(text);
        let refusal = given.refusal();
        let prefix = format!("file {}: {expected}", given.sources.files[0].display());
        assert!(refusal.starts_with(&prefix), "{text}\n  expected {prefix}\n  got      {refusal}");
    }
    let refusal = given().variable("HEADWATER_REDIS__POOL_SIZE", "0").refusal();
    assert_eq!(
        refusal,
        "environment variable HEADWATER_REDIS__POOL_SIZE: redis.pool_size: must lie between 1 and 256, not 0"
    );
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let mut missing = given();
    missing.sources.files.push("/nonexistent/headwater.toml".into());
    assert!(missing.refusal().starts_with("cannot read configuration file /nonexistent/headwater.toml: "));

    let broken = in_file("[redis]\npassword = \"s3cret\nprefix = 'a'");
    let refusal = broken.refusal();
    assert!(refusal.starts_with(&format!("{}, line 2: ", broken.sources.files[0].display())), "{refusal}");
    assert!(!refusal.contains("s3cret"), "{refusal}");

    let binary = given().file("headwater.toml", [0xff]);
    assert!(binary.refusal().starts_with("cannot read configuration file "));
}

#[test]
fn secrets_are_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    std::fs::write(&password_file, "s3cret\r\n").unwrap();
    let accepted = [
        in_file("[redis]\nurl = 'redis://app:s3cret@127.0.0.1'"),
        in_file("[redis]\npassword = 's3cret'"),
        in_file(&format!("[redis]\npassword_file = {password_file:?}")),
        in_file("[auth.jwt]\nsecret = 's3cret'"),
        given().variable("HEADWATER_AUTH__JWT__SECRET", "s3cret"),
        in_file(&format!("[auth.jwt]\nsecret_file = {password_file:?}")),
        in_file("[auth.jwt]\njwks_url = 'https://app:s3cret@issuer.example/keys'"),
        in_file("[auth.jwt]\njwks_url = 'https://s3cret@issuer.example/keys'"),
    ];
    for given in accepted {
        let config = given.load();
        let printed = format!("{config:?}\n{}", config.to_toml());
        assert!(!printed.contains("s3cret"), "{printed}");
    }
    let refused = [
        "[redis]\npassword = ['s3cret']",
        "[redis.password]\ns3cret = 's3cret'",
        "[redis]\nurl = 's3cret'",
        "[redis]\nurl = 'redis://s3cret/@h'",
        "[redis]\nurl = 'redis://u:s3cret@h'\npassword = 's3cret'",
        "[auth.jwt]\nsecret = ['s3cret']",
        "[auth.jwt]\nsecret = 's3cret'\nsecret_file = 'x'",
        "[[auth.keys]]\nname = 'a'\nsha256 = 's3cret'",
        "[auth.jwt]\njwks_url = 'http://app:s3cret@issuer.example/keys'",
        "[auth.jwt]\njwks_url = 'https://app:s3cret@issuer.example:x/keys'",
    ];
    for text in refused {
        let refusal = in_file(text).refusal();
        assert!(!refusal.contains("s3cret"), "{refusal}");
    }
}

#[test]
fn a_password_comes_from_one_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, "from the file\n").unwrap();
    let from_file = in_file(&format!("[redis]\npassword_file = {path:?}"));
    assert_eq!(from_file.load().redis.read_password().unwrap().unwrap().expose(), "from the file");

    let options = from_file.load().redis_options().unwrap();
    assert!(options.is_none(), "without a URL the embedded log serves");
    let with_url = in_file(&format!("[redis]\nurl = 'redis://h'\npassword_file = {path:?}"))
        .load()
        .redis_options()
        .unwrap()
        .unwrap();
    assert_eq!(with_url.endpoint.password.as_deref(), Some("from the file"));

    let both = in_file(&format!("[redis]\npassword_file = {path:?}"))
        .variable("HEADWATER_REDIS__PASSWORD", "x")
        .refusal();
    assert!(both.contains("redis.password and redis.password_file are both set; keep one"), "{both}");
    let url = in_file("[redis]\nurl = 'redis://:a@h'\npassword = 'b'").refusal();
    assert!(url.contains("the password in redis.url and redis.password are both set"), "{url}");

    let missing = in_file("[redis]\npassword_file = '/nonexistent'").refusal();
    assert!(missing.contains("redis.password_file: cannot read /nonexistent"), "{missing}");
    std::fs::write(&path, "\n").unwrap();
    let empty = from_file.refusal();
    assert!(empty.ends_with("password is empty"), "{empty}");
}

#[test]
fn an_open_broker_is_reachable_from_elsewhere_only_on_purpose() {
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
        let refusal = given().flag("--listen", "server.listen", listen).refusal();
        assert!(refusal.starts_with("flag --listen: server.listen: "), "{refusal}");
        assert!(refusal.contains("auth.open = true"), "{refusal}");
        let on_purpose = in_file("[auth]\nopen = true").flag("--listen", "server.listen", listen);
        assert_eq!(on_purpose.load().server.listen.to_string(), listen);
    }
    for listen in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:8080", "[::ffff:127.0.0.1]:80"] {
        given().flag("--listen", "server.listen", listen).load();
    }
}

/// Where nobody else can connect a short secret is pleasant, elsewhere it is a hole.
#[test]
fn a_secret_that_can_be_guessed_is_refused_where_others_can_try() {
    let weak = |listen| in_file("[auth.jwt]\nsecret = 'guess me'").flag("--listen", "server.listen", listen);
    weak("127.0.0.1:0").load();
    let refusal = weak("0.0.0.0:0").refusal();
    assert!(refusal.contains("auth.jwt.secret: fewer than 32 bytes"), "{refusal}");
    let strong = in_file("[auth.jwt]\nsecret = '0123456789abcdef0123456789abcdef'");
    strong.flag("--listen", "server.listen", "0.0.0.0:0").load();
    // In a key set it is as short: seen to fail where only auth.jwt.secret is measured.
    let directory = tempfile::tempdir().unwrap();
    let set = directory.path().join("jwks.json");
    let given = |listen| {
        in_file(&format!("[auth.jwt]\njwks_file = {set:?}")).flag("--listen", "server.listen", listen)
    };
    std::fs::write(&set, r#"{"keys": [{"kty": "oct", "k": "Z3Vlc3MgbWU"}]}"#).unwrap();
    given("127.0.0.1:0").load();
    let refusal = given("0.0.0.0:0").refusal();
    assert!(refusal.contains("auth.jwt.jwks_file: fewer than 32 bytes"), "{refusal}");
}

/// Seen to fail with any 64 digits taken: with a variable that is not set `sha256sum` prints the hash of nothing, and then
/// whoever sends an empty key has it.
#[test]
fn the_hash_of_nothing_is_no_key_and_neither_is_the_example() {
    for nothing in [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b",
    ] {
        let refusal = in_file(&format!("[[auth.keys]]\nname = 'a'\nsha256 = '{nothing}'")).refusal();
        assert!(refusal.contains("SHA-256 of nothing"), "{refusal}");
    }
    let example: Vec<&str> = layers::DEFAULTS
        .lines()
        .skip_while(|line| *line != "# [[auth.keys]]")
        .map_while(|line| line.strip_prefix("# "))
        .collect();
    let refusal = in_file(&example.join("\n")).refusal();
    assert!(refusal.contains("expected the SHA-256 of the key"), "{refusal}");
}

#[test]
fn issuer_and_audience_are_a_text_or_a_list() {
    let jwt = |text: &str| in_file(&format!("[auth.jwt]\nsecret = 'x'\n{text}")).load().auth.jwt;
    assert_eq!(jwt("audience = 'a'").audience, ["a"]);
    assert_eq!(jwt("audience = ['a', 'b']\nissuer = ['c']").policy().audiences, ["a", "b"]);
    let given =
        given().variable("HEADWATER_AUTH__JWT__SECRET", "1234").variable("HEADWATER_AUTH__JWT__ISSUER", "i");
    let jwt = given.load().auth.jwt;
    assert_eq!(jwt.signing_secret().unwrap().unwrap(), b"1234");
    assert_eq!(jwt.issuer, ["i"]);
}

#[test]
fn retention_rules_inherit_what_they_leave_out() {
    let config = in_file(
        "[retention]\nmax_length = 10\nmax_age = '1h'\n\
         [[retention.rules]]\npattern = 'long'\nmax_length = 'none'\n\
         [[retention.rules]]\npattern = '$user:*'\nmax_age = '2h'\n\
         [[retention.rules]]\npattern = 'all'\nmax_length = 'none'\nmax_age = 'none'",
    )
    .load();
    let rules = config.retention_rules();
    let hours = |n: u64| Some(Duration::from_secs(n * 3_600));
    let cases = [
        ("other", Retention { max_length: Some(10), max_age: hours(1) }),
        ("long", Retention { max_length: None, max_age: hours(1) }),
        ("$user:1", Retention { max_length: Some(10), max_age: hours(2) }),
        ("all", Retention { max_length: None, max_age: None }),
    ];
    for (channel, expected) in cases {
        assert_eq!(rules.of(&Channel::parse_stored(channel).unwrap()), expected, "{channel}");
    }
}

#[test]
fn what_is_printed_can_be_read_again_and_means_the_same() {
    let given = in_file(
        "[sse]\nretry = '1500ms'\nheartbeat = 'comment'\nlifetime_max = '90m'\n\
         [retention]\nmax_age = 'none'\n\
         [limits]\nconnect_rate = '600/m'\npublish_rate = '5/s'\n\
         [server]\ntrusted_proxies = ['10.0.0.0/8', '192.0.2.1']\n\
         [auth]\nprotect_metrics = true\n[[auth.keys]]\nname = 'k'\npublish = ['a']\n\
         sha256 = '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'\n\
         [auth.jwt]\njwks_url = 'https://h/k'\nalgorithms = ['RS256']\naudience = 'a'\n\
         [[retention.rules]]\npattern = 'a\\u007F\"é'\nmax_length = 'none'\n"
            .replace("\\u007F", "x")
            .as_str(),
    );
    let printed = given.load().to_toml();
    assert!(printed.contains("retry = \"1s 500ms\"  # file "), "{printed}");
    assert!(printed.contains("# url is not set"), "{printed}");
    let again = in_file(&printed).load();
    let without_sources = |text: &str| {
        text.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(without_sources(&again.to_toml()), without_sources(&printed));
    assert_eq!(again.retention_rules(), given.load().retention_rules());
}

/// The keys of each section, and of sections within it, as the types know them.
fn known_keys() -> BTreeSet<String> {
    let config = serde_json::to_value(given().load()).unwrap();
    let mut sections: Vec<(String, serde_json::Value)> =
        config.as_object().unwrap().iter().map(|(name, keys)| (name.clone(), keys.clone())).collect();
    let mut keys = BTreeSet::new();
    while let Some((section, values)) = sections.pop() {
        for (key, value) in values.as_object().unwrap() {
            let path = format!("{section}.{key}");
            if value.is_object() {
                sections.push((path, value.clone()));
            } else {
                keys.insert(path);
            }
        }
    }
    keys
}

#[test]
fn the_default_file_documents_every_key_and_no_other() {
    let mut documented = BTreeSet::new();
    let mut section = "";
    for line in layers::DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        }
        if let Some(list) = line.strip_prefix("# [[").and_then(|rest| rest.strip_suffix("]]")) {
            documented.insert(list.to_owned());
            section = "the example of an entry";
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            && section != "the example of an entry"
        {
            documented.insert(format!("{section}.{key}"));
        }
    }
    assert_eq!(documented, known_keys());
}

proptest! {
    #[test]
    fn any_text_as_a_file_is_a_configuration_or_an_error(
        text in prop_oneof!["\\PC{0,60}", "(\\[{1,2}[a-z.]{0,9}\\]{1,2}\n|[a-z_.\"]{0,8} ?= ?[-0-9a-z\"'{},.\\[\\]]{0,12}\n){0,6}"]
    ) {
        let mut stack = Stack::new(&NodeId::parse("n").unwrap());
        if let Err(e) = stack.push_file(std::path::Path::new("any.toml"), &text) {
            prop_assert!(e.to_string().contains("any.toml"));
        }
    }

    #[test]
    fn any_variable_is_a_value_or_an_error_that_names_it(
        key in prop::sample::select(known_keys().into_iter().collect::<Vec<_>>()),
        mangled in "[A-Z_]{0,4}",
        value in prop_oneof!["\\PC{0,30}", "[-+0-9a-z\"'{}=,.:\\[\\]\n]{0,20}"],
    ) {
        let name = format!("HEADWATER_{}{mangled}", key.to_uppercase().replace('.', "__"));
        if let Err(e) = Config::load(&given().variable(&name, &value).sources) {
            prop_assert!(e.to_string().contains(&name), "{}", e);
        }
    }

    #[test]
    fn a_password_in_a_variable_is_taken_to_the_letter_unless_it_is_quoted(password in "[^\"'\\pC ][^\\pC]{0,20}") {
        let config = given().variable("HEADWATER_REDIS__PASSWORD", &password).load();
        let taken = config.redis.password.unwrap();
        prop_assert_eq!(taken.expose(), password);
    }
}

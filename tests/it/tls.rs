//! TLS: HTTP/2 by ALPN, many streams on one connection, and certificates that change while the broker runs.

use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::{Certificate, Client, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::broker::{Builder, command};
use crate::support::tokens::{SECRET, admin_claims, token};
use crate::support::{Broker, Store, until, within};

/// An authority of a test's own.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes a certificate for this machine, and its key.
    fn issue(&self, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    }

    async fn broker(&self, dir: &Path) -> Broker {
        self.builder(dir).await.start().await
    }

    async fn builder(&self, dir: &Path) -> Builder {
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let builder = Broker::on(Store::Embedded).await.over_tls(&self.pem());
        let builder = builder.set("tls.cert_file", &file("cert.pem")).set("tls.key_file", &file("key.pem"));
        builder.set("server.header_timeout", "1s")
    }

    fn client(&self) -> reqwest::ClientBuilder {
        let authority = Certificate::from_pem(self.pem().as_bytes()).unwrap();
        Client::builder().no_proxy().tls_certs_only([authority])
    }
}

/// Reads a stream until this text came.
async fn read_until(answer: &mut reqwest::Response, text: &str) {
    let mut seen = String::new();
    let reading = async {
        while !seen.contains(text) {
            let chunk = answer.chunk().await.expect("the stream goes on").expect("the stream goes on");
            seen.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    within(text, reading).await;
}

/// Seen to fail without `h2` in ALPN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_many_streams() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(dir.path());
    let broker = authority.broker(dir.path()).await;
    let url = format!("https://{}/events?channels=a", broker.addr);
    let client = authority.client().build().unwrap();
    let mut streams = Vec::new();
    for _ in 0..30 {
        let mut stream = client.get(&url).send().await.unwrap();
        assert_eq!(stream.version(), Version::HTTP_2, "ALPN prefers it");
        read_until(&mut stream, "event: connected").await;
        streams.push(stream);
    }
    broker.http.publish("a", "to all").await;
    for stream in &mut streams {
        read_until(stream, "data: to all").await;
    }
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", std::process::id())).unwrap();
    let to_broker = format!("0100007F:{:04X}", broker.addr.port());
    let open = sockets.lines().filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Established, seen from this side.
        fields.get(2) == Some(&to_broker.as_str()) && fields.get(3) == Some(&"01")
    });
    // One is the test's own client for publishing.
    assert!(open.count() <= 2, "30 streams share a connection:\n{sockets}");

    let old = authority.client().http1_only().build().unwrap();
    let mut stream = old.get(&url).send().await.unwrap();
    assert_eq!(stream.version(), Version::HTTP_11);
    read_until(&mut stream, "event: connected").await;
}

/// Whoever is on the way can put a page at `http://` this host, but none at `https://`. Seen to fail when the scheme of
/// `Origin` is passed over, over either version of HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_without_tls_may_not_use_the_cookie_of_a_site_with_it() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(dir.path());
    let broker = authority.builder(dir.path()).await.set("auth.jwt.secret", SECRET).start().await;
    let cookie = format!("headwater_token={}", token(&admin_claims()));
    for client in [authority.client(), authority.client().http1_only()] {
        let client = client.build().unwrap();
        for (scheme, status) in [("https", 201), ("http", 403)] {
            let request = client.post(format!("https://{}/channels/a/events", broker.addr));
            let request = request.header("cookie", &cookie).header("content-type", "text/plain").body("x");
            let answer =
                request.header("origin", format!("{scheme}://{}", broker.addr)).send().await.unwrap();
            assert_eq!(answer.status(), status, "{scheme} {:?}", answer.version());
        }
    }
}

/// Seen to fail with a certificate that is only read at start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again_on_a_hangup_and_bad_ones_are_not_taken() {
    let (old, new, dir) = (Authority::new(), Authority::new(), tempfile::tempdir().unwrap());
    old.issue(dir.path());
    let broker = old.broker(dir.path()).await;
    let url = format!("https://{}/healthz", broker.addr);
    // A connection of its own each time, as no client keeps one.
    let trusts = async |authority: &Authority| {
        let client =
            authority.client().pool_max_idle_per_host(0).timeout(Duration::from_secs(10)).build().unwrap();
        client.get(&url).send().await.is_ok()
    };
    let subscriber = old.client().build().unwrap();
    let events = format!("https://{}/events?channels=a", broker.addr);
    let mut stream = subscriber.get(events).send().await.unwrap();
    read_until(&mut stream, "event: connected").await;
    assert!(trusts(&old).await && !trusts(&new).await);

    std::fs::write(dir.path().join("cert.pem"), "no certificate").unwrap();
    broker.sighup();
    until("the broker says why", async || {
        broker.output().contains("the certificate stays as it was").then_some(())
    })
    .await;
    assert!(trusts(&old).await, "the old one is still shown");

    new.issue(dir.path());
    broker.sighup();
    until("the new one is shown", async || trusts(&new).await.then_some(())).await;
    assert!(!trusts(&old).await);
    // What was open goes on.
    let publisher = new.client().build().unwrap();
    let publish = publisher
        .post(format!("https://{}/channels/a/events", broker.addr))
        .header("content-type", "text/plain");
    assert_eq!(publish.body("still here").send().await.unwrap().status(), 201);
    read_until(&mut stream, "data: still here").await;
}

/// Seen to fail with a handshake that may take for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_finish_a_handshake_is_dropped() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(dir.path());
    let broker = authority.broker(dir.path()).await;
    for begin in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut socket = TcpStream::connect(broker.addr).await.unwrap();
        socket.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let _ = within("the server gives up", socket.read_to_end(&mut rest)).await;
    }
    broker.http.get("/healthz").await.expect(200);
}

/// Far more than there is room for. Seen to fail with a connection that counts as of use before it has sent a request, and
/// with handshakes that are not counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_nobody_out_and_are_counted() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(dir.path());
    let broker = authority.builder(dir.path()).await.descriptors(128).start().await;
    let url = |path: &str| format!("https://{}{path}", broker.addr);
    let reader = authority.client().build().unwrap();
    let mut stream = reader.get(url("/events?channels=a")).send().await.unwrap();
    read_until(&mut stream, "event: connected").await;
    let mut held = Vec::new();
    for n in 0..300 {
        let mut socket = TcpStream::connect(broker.addr).await.unwrap();
        // The head of a record that does not come; and of what is none.
        let begin: &[u8] = if n == 0 { b"GET / HTTP/1.1\r\n\r\n" } else { b"\x16\x03\x01\x02\x00" };
        socket.write_all(begin).await.unwrap();
        held.push(socket);
    }
    let newcomer = authority.client().build().unwrap();
    let publish = newcomer.post(url("/channels/a/events")).header("content-type", "text/plain").body("x");
    let answer = within("a newcomer is served", publish.send()).await.unwrap();
    assert_eq!(answer.status(), 201);
    read_until(&mut stream, "data: x").await;
    let counted = async |outcome: &str| {
        let text = newcomer.get(url("/metrics")).send().await.unwrap().text().await.unwrap();
        let name = format!("headwater_tls_handshakes_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or_default()
    };
    until("those that are left run out of time", async || (counted("timed_out").await > 0).then_some(()))
        .await;
    assert_eq!(counted("failed").await, 1);
    // Some of the rest made room, perhaps before they began.
    let ended = counted("finished").await + counted("failed").await + counted("timed_out").await;
    assert!(counted("finished").await >= 2 && counted("begun").await >= ended);
    for mut socket in held {
        let mut rest = Vec::new();
        let _ = within("the server gives up", socket.read_to_end(&mut rest)).await;
    }
}

/// Seen to fail with a client that takes any certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_commands_speak_tls_and_trust_whom_the_system_trusts() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(dir.path());
    let broker = authority.broker(dir.path()).await;
    let trusted = dir.path().join("authority.pem");
    std::fs::write(&trusted, authority.pem()).unwrap();
    let run = |trusted: Option<&Path>| {
        let mut command = command(&["publish", "a", "x"]);
        command.env("HEADWATER_URL", format!("https://{}", broker.addr));
        command.envs(trusted.map(|path| ("SSL_CERT_FILE", path)));
        command.output().unwrap()
    };
    let published = run(Some(&trusted));
    assert_eq!(published.status.code(), Some(0), "{published:?}");
    let refused = run(None);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    assert_eq!(broker.http.history("a").await.len(), 1);
}

//! What a broker says of itself under `GET /metrics`, and the proof that nothing was left behind.
//!
//! Invariant: asking disturbs nothing: each look is one connection of its own that is closed by the broker, and
//! blocks its thread, so that a broker can be looked at while it is dropped.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use super::until::{DEADLINE, PAUSE};

/// What is 0 on a broker without clients, publishers and unread history.
const IDLE: [&str; 9] = [
    "headwater_event_streams",
    "headwater_subscriptions",
    "headwater_topics",
    "headwater_filters",
    "headwater_ring_bytes",
    "headwater_reading_page_bytes",
    "headwater_publish_queue_requests",
    "headwater_publish_queue_bytes",
    "headwater_request_body_bytes",
];

/// One look.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Types by name, as `counter`.
    pub(crate) types: BTreeMap<String, String>,
    /// Values by series, as `headwater_gaps_total{reason="reset"}`.
    pub(crate) series: BTreeMap<String, String>,
}

impl Metrics {
    /// Asks the broker at `addr`.
    pub(crate) fn of(addr: SocketAddr) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&addr, DEADLINE)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        Ok(Self::parse(body))
    }

    fn parse(text: &str) -> Self {
        let mut metrics = Self { types: BTreeMap::new(), series: BTreeMap::new() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type follows the name");
                let before = metrics.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} stands there twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value follows the series");
                assert!(value.parse::<f64>().is_ok(), "no number in {line:?}");
                let before = metrics.series.insert(series.to_owned(), value.to_owned());
                assert_eq!(before, None, "{series} stands there twice");
            }
        }
        metrics
    }

    /// One series, or all series of this name together; a number of things.
    pub(crate) fn get(&self, name: &str) -> u64 {
        let is_it =
            |series: &str| series == name || series.split_once('{').is_some_and(|(own, _)| own == name);
        let mut found = self.series.iter().filter(|(series, _)| is_it(series)).peekable();
        assert!(found.peek().is_some(), "no {name} in {self:?}");
        let whole = |value: &str| value.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {value}"));
        found.map(|(_, value)| whole(value)).sum()
    }

    /// Tasks that serve no connection: as many as at the start when nothing was left behind.
    fn standing_tasks(&self) -> u64 {
        self.get("headwater_tokio_tasks") - self.get("headwater_connections")
    }

    /// What is not as it is on a broker that has just started.
    fn left_behind(&self, start: &Self) -> Vec<String> {
        let mut left: Vec<String> = IDLE
            .iter()
            .map(|name| (name, self.get(name)))
            .filter(|(_, value)| *value > 0)
            .map(|(name, value)| format!("{name} is {value}"))
            .collect();
        // The connection that asks is one.
        let connections = self.get("headwater_connections");
        if connections > 1 {
            left.push(format!("headwater_connections is {connections}, one of them asks"));
        }
        let (tasks, before) = (self.standing_tasks(), start.standing_tasks());
        if tasks > before {
            left.push(format!("{tasks} tasks serve no connection, at the start there were {before}"));
        }
        left
    }
}

/// Waits until the broker at `addr` is as it was at its `start`; fails the test when it does not get there.
pub(crate) fn assert_nothing_left_behind(addr: SocketAddr, start: &Metrics) {
    let begun = Instant::now();
    loop {
        let left = match Metrics::of(addr) {
            Ok(metrics) => metrics.left_behind(start),
            Err(error) => vec![format!("GET /metrics fails: {error}")],
        };
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "the test is over and its clients are gone, but {left:?}");
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn what_is_left_is_named() {
    let look = |streams: u32, connections: u32, tasks: u32| {
        let idle = IDLE.join(" 0\n") + " 0\n";
        let text = idle.replace("event_streams 0", &format!("event_streams {streams}"));
        Metrics::parse(&format!("{text}headwater_connections {connections}\nheadwater_tokio_tasks {tasks}\n"))
    };
    let start = look(0, 1, 6);
    assert_eq!(look(0, 1, 5).left_behind(&start), [""; 0]);
    for (now, expected) in [
        (look(1, 1, 6), "event_streams is 1"),
        (look(0, 2, 7), "connections is 2"),
        (look(0, 1, 7), "6 tasks serve no connection"),
    ] {
        let left = now.left_behind(&start);
        assert!(left.len() == 1 && left[0].contains(expected), "{left:?}");
    }
    let labelled = Metrics::parse("# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\n");
    assert_eq!((labelled.get("a_total"), labelled.get("a_total{x=\"2\"}")), (5, 3));
}

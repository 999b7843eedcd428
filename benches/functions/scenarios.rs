//! What is measured: ways to publish beside two plain `XADD`s an event, ways to read beside a plain `XRANGE`.
//!
//! Invariant: both sides of a scenario write, or read, the same events.

use crate::resp::Resp;

pub(crate) const FEED: &str = "hw:{0}:feed";
pub(crate) const STATE: &str = "hw:{0}:state";
/// The epoch of every store here, and the floor that the caller has: found in the feed, as a node's floor is.
pub(crate) const EPOCH: &str = "1-1";

const DAY_MS: &str = "86400000";
/// Channels for what is different in each call.
const CHANNELS: usize = 20_000;
/// Events of the channel that is read.
const STORED: usize = 2_000;

/// One command's words.
type Words = Vec<String>;
/// The commands of the n-th call.
type Call = Box<dyn FnMut(usize) -> Vec<Words>>;

/// One row of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) plain: Side,
    pub(crate) function: Side,
}

/// Plain commands, or functions.
pub(crate) struct Side {
    /// Fills the store and answers what to call.
    pub(crate) prepare: Box<dyn Fn(&mut Resp) -> Call>,
    /// Events that one call writes or reads.
    pub(crate) events: usize,
    /// Calls for which the store is prepared.
    pub(crate) calls_max: usize,
    /// Every call is refused, or its first request is; otherwise none may be.
    pub(crate) is_refused: bool,
}

impl Side {
    fn new(events: usize, call: impl Fn(usize) -> Vec<Words> + Clone + 'static) -> Self {
        Self::prepared(events, |_| {}, call)
    }

    fn prepared(
        events: usize,
        prepare: impl Fn(&mut Resp) + 'static,
        call: impl Fn(usize) -> Vec<Words> + Clone + 'static,
    ) -> Self {
        let prepare = Box::new(move |resp: &mut Resp| -> Call {
            prepare(resp);
            Box::new(call.clone())
        });
        Self { prepare, events, calls_max: usize::MAX, is_refused: false }
    }

    fn refused(mut self) -> Self {
        self.is_refused = true;
        self
    }

    fn at_most(mut self, calls_max: usize) -> Self {
        self.calls_max = calls_max;
        self
    }
}

/// How a publish is composed.
#[derive(Clone, Copy)]
struct Shape {
    requests: usize,
    items: usize,
    channels: usize,
    retention: bool,
    key: Key,
    /// The highest id that the caller says it has seen.
    floor: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    None,
    New,
    /// Each is used twice in a row, for the first time in this call.
    Twice,
    Known,
}

const ONE: Shape =
    Shape { requests: 1, items: 1, channels: 1, retention: true, key: Key::None, floor: EPOCH };

/// Every row of the table, in its order.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = vec![Scenario {
        name: "two plain XADDs an event, pipelined",
        plain: two_xadds(ONE),
        function: two_xadds(ONE),
    }];
    all.extend(publishing());
    all.extend(special_cases());
    all.extend(refusals());
    all.extend(by_other_programs());
    all.extend(reading());
    all
}

fn publishing() -> Vec<Scenario> {
    let rows: [(&'static str, Shape); 15] = [
        ("one event a call, no retention", Shape { retention: false, ..ONE }),
        ("one event a call", ONE),
        ("one event a call, idempotency key, new", Shape { key: Key::New, ..ONE }),
        ("one event a call, idempotency key, duplicate", Shape { key: Key::Known, ..ONE }),
        ("10 requests a call", Shape { requests: 10, ..ONE }),
        ("100 requests a call", Shape { requests: 100, ..ONE }),
        ("1,000 requests a call", Shape { requests: 1_000, ..ONE }),
        ("1,000 requests a call, no retention", Shape { requests: 1_000, retention: false, ..ONE }),
        ("100 requests a call, idempotency keys, new", Shape { requests: 100, key: Key::New, ..ONE }),
        ("100 requests a call, every key twice", Shape { requests: 100, key: Key::Twice, ..ONE }),
        ("one event a call, the caller's floor was trimmed away", Shape { floor: "0-5", ..ONE }),
        ("100 requests a call to 100 channels", Shape { requests: 100, channels: 100, ..ONE }),
        ("one request of 12 events, one channel", Shape { items: 12, ..ONE }),
        ("one request of 12 events, 12 channels", Shape { items: 12, channels: 12, ..ONE }),
        ("one request of 1,000 events, 1,000 channels", Shape { items: 1_000, channels: 1_000, ..ONE }),
    ];
    let scenario = |(name, shape): (&'static str, Shape)| {
        let events = shape.requests * shape.items;
        Scenario {
            name,
            plain: two_xadds(shape),
            function: Side::new(events, move |n| vec![publish(shape, n)]),
        }
    };
    rows.into_iter().map(scenario).collect()
}

/// Two plain `XADD`s per event; with retention the channel's is a `MAXLEN ~`.
fn two_xadds(shape: Shape) -> Side {
    two_xadds_after(shape, |_| {})
}

fn two_xadds_after(shape: Shape, prepare: impl Fn(&mut Resp) + 'static) -> Side {
    let events = shape.requests * shape.items;
    Side::prepared(events, prepare, move |n| {
        (0..events).flat_map(|i| xadds(&channel(shape, n * events + i), shape.retention)).collect()
    })
}

fn xadds(channel: &str, retention: bool) -> [Words; 2] {
    let data = data();
    let key = key_of(channel);
    let mut event = vec!["XADD", &key];
    if retention {
        event.extend(["MAXLEN", "~", "1000"]);
    }
    event.extend(["*", "v", "1", "type", "message", "data", &data]);
    [words(&["XADD", FEED, "*", "ch", channel, "n", "207"]), words(&event)]
}

/// The n-th call of `headwater_publish_v1`.
fn publish(shape: Shape, n: usize) -> Words {
    let data = data();
    let mut call = words(&["FCALL", "headwater_publish_v1", "1", FEED, shape.floor, "1"]);
    call.extend(words(if shape.retention { &["1000", DAY_MS] } else { &["", ""] }));
    for request in 0..shape.requests {
        call.push(shape.items.to_string());
        for item in 0..shape.items {
            let event = (n * shape.requests + request) * shape.items + item;
            let (key, window) = match shape.key {
                Key::None => (String::new(), ""),
                Key::New => (format!("key-{event}"), "600000"),
                Key::Twice => (format!("key-{}", event / 2), "600000"),
                Key::Known => ("key".to_owned(), "600000"),
            };
            let channel = channel(shape, event);
            call.extend(words(&[&channel, "1", "message", &data, "", "", "1", &key, window]));
        }
    }
    call
}

fn special_cases() -> Vec<Scenario> {
    let spread = Shape { channels: CHANNELS, ..ONE };
    let in_turn = move |n| vec![publish(spread, n)];
    vec![
        Scenario {
            name: "one event a call, to 20,000 channels in turn",
            plain: two_xadds_after(spread, |resp| fill_channels(resp, 0)).at_most(CHANNELS),
            function: Side::prepared(1, |resp| fill_channels(resp, 0), in_turn).at_most(CHANNELS),
        },
        Scenario {
            name: "the same, every channel ahead of the feed (conflict)",
            plain: two_xadds_after(spread, |resp| fill_channels(resp, 60_000)).at_most(CHANNELS),
            function: Side::prepared(1, |resp| fill_channels(resp, 60_000), in_turn).at_most(CHANNELS),
        },
        Scenario {
            name: "one event a call, old refs leave the feed",
            plain: two_xadds(ONE),
            function: Side::prepared(1, fill_feed, |n| vec![publish(ONE, n)]),
        },
    ]
}

/// What is not appended costs too. Beside it stand the `XADD`s that would have been made.
fn refusals() -> Vec<Scenario> {
    let batch = Shape { requests: 100, channels: 100, ..ONE };
    let whole = Shape { items: 12, channels: 12, ..ONE };
    let rolled_back = Shape { floor: "99999999999999-0", ..ONE };
    let row = |name, shape: Shape, prepare: fn(&mut Resp)| Scenario {
        name,
        plain: two_xadds(shape),
        function: Side::prepared(shape.requests * shape.items, prepare, move |n| vec![publish(shape, n)])
            .refused(),
    };
    vec![
        row("refused: the channel is poisoned", ONE, |resp| poison(resp, "orders")),
        row("refused: the key is no stream", ONE, |resp| spoil(resp, "orders")),
        row("100 requests a call, one of them refused: no stream", batch, |resp| spoil(resp, "ch-0")),
        row("refused: one request of 12 events, the last key is no stream", whole, |resp| {
            spoil(resp, "ch-11");
        }),
        row("refused: the caller has seen more (rolled back)", rolled_back, |_| {}),
        row("refused: Redis is full (OOM)", ONE, |resp| {
            resp.call(&["CONFIG", "SET", "maxmemory", "1"]);
        }),
    ]
}

/// The channel's last id lies ten days ahead.
fn poison(resp: &mut Resp, channel: &str) {
    let script = "local ms = (redis.call('TIME')[1] + 864000) * 1000 \
                  redis.call('XADD', KEYS[1], string.format('%.0f-0', ms), 'v', '1', 'type', 'message', 'data', 'x')";
    resp.call(&["EVAL", script, "1", &key_of(channel)]);
}

fn spoil(resp: &mut Resp, channel: &str) {
    resp.call(&["SET", &key_of(channel), "no stream"]);
}

fn by_other_programs() -> Vec<Scenario> {
    let call = |data: String, key: Option<&'static str>| {
        move |n: usize| {
            let mut call = words(&["FCALL", "headwater_publish", "1", FEED, "orders", "message", &data]);
            call.extend(key.map(|key| format!("{key}-{n}")));
            vec![call]
        }
    };
    let json = format!("{{\"text\":\"{}\"}}", "x".repeat(189));
    let rules = |resp: &mut Resp| {
        let rules = (0..10).flat_map(|n| [format!("rule.{n}.*"), format!("{n} 1000 {DAY_MS}")]);
        resp.call(&words(&["HSET", "hw:{0}:retention"]).into_iter().chain(rules).collect::<Vec<_>>());
    };
    vec![
        Scenario {
            name: "headwater_publish, text",
            plain: two_xadds(ONE),
            function: Side::new(1, call(data(), None)),
        },
        Scenario {
            name: "headwater_publish, JSON, ten retention rules",
            plain: two_xadds(ONE),
            function: Side::prepared(1, rules, call(json, None)),
        },
        Scenario {
            name: "headwater_publish, text, idempotency key",
            plain: two_xadds(ONE),
            function: Side::new(1, call(data(), Some("key"))),
        },
    ]
}

fn reading() -> Vec<Scenario> {
    let rows = [
        ("read_v1, pages of one event", 1, 200),
        ("read_v1, pages of 16 events", 16, 200),
        ("read_v1, pages of 100 events", 100, 200),
        ("read_v1, pages of 1,000 events", 1_000, 200),
        ("read_v1, pages of 16 events of 16 kB", 16, 16_000),
    ];
    let scenario = |(name, count, bytes): (&'static str, usize, usize)| {
        let fill = move |resp: &mut Resp| fill_channel(resp, bytes);
        let count_text = count.to_string();
        let xrange = words(&["XRANGE", &key_of("orders"), "(0-0", "+", "COUNT", &count_text]);
        let call = ["FCALL", "headwater_read_v1", "1", FEED, "orders", "0-0", "99999999999999-0", "asc"];
        let function = words(&call).into_iter().chain(words(&[&count_text, "16777216", DAY_MS]));
        let function: Words = function.collect();
        Scenario {
            name,
            plain: Side::prepared(count, fill, move |_| vec![xrange.clone()]),
            function: Side::prepared(count, fill, move |_| vec![function.clone()]),
        }
    };
    rows.into_iter().map(scenario).collect()
}

/// Channels that exist, the n-th with a last id that lies `ahead` + 2n ms ahead; 0 is none of them ahead.
fn fill_channels(resp: &mut Resp, ahead: u64) {
    let script = "local now = redis.call('TIME')[1] * 1000 + tonumber(ARGV[1]) \
                  for i = 0, tonumber(ARGV[2]) - 1 do \
                    local id = ARGV[1] == '0' and '1-1' or string.format('%.0f-0', now + 2 * i) \
                    redis.call('XADD', 'hw:{0}:ch:ch-' .. i, id, 'v', '1', 'type', 'message', 'data', 'x') \
                  end";
    resp.call(&["EVAL", script, "0", &ahead.to_string(), &CHANNELS.to_string()]);
}

/// As many old refs as may stay and some that will go, one by one as new ones come.
fn fill_feed(resp: &mut Resp) {
    resp.call(&["DEL", FEED]);
    let script =
        "for i = 1, 101000 do redis.call('XADD', KEYS[1], '1-' .. i, 'ch', 'orders', 'n', '207') end";
    resp.call(&["EVAL", script, "1", FEED]);
}

fn fill_channel(resp: &mut Resp, bytes: usize) {
    let shape = Shape { requests: 100, retention: false, ..ONE };
    if bytes == data().len() {
        for n in 0..STORED / 100 {
            resp.call(&publish(shape, n));
        }
        return;
    }
    for _ in 0..32 {
        let event = ["XADD", &key_of("orders"), "*", "v", "1", "type", "message", "data", &"x".repeat(bytes)];
        resp.call(&event);
    }
}

fn channel(shape: Shape, event: usize) -> String {
    if shape.channels == 1 { "orders".to_owned() } else { format!("ch-{}", event % shape.channels) }
}

fn key_of(channel: &str) -> String {
    format!("hw:{{0}}:ch:{channel}")
}

fn data() -> String {
    "x".repeat(200)
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| (*word).to_owned()).collect()
}

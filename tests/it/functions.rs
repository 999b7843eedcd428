//! The Redis function library by itself: every branch, called as brokers and other programs call it.
//!
//! The libraries are loaded by `headwater migrate`, so what is tested is what ships. Neighbours: one file of tests
//! for each thing that the library does, and `property`, which compares it with a model.

mod manage;
mod other_programs;
mod property;
mod publish;
mod read;
mod retention;
mod server;

use crate::support::Redis;
use crate::support::broker::command;
use crate::support::resp::{Reply, Resp};

const FEED: &str = "hw:{0}:feed";
const STATE: &str = "hw:{0}:state";
const CHANNELS: &str = "hw:{0}:channels";
/// The floor of a node that has seen nothing.
const NO_FLOOR: &str = "0-0";
const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// A server with the libraries of layout 1, and a connection to it.
struct Functions {
    redis: Redis,
    resp: Resp,
}

/// A stream id: milliseconds and sequence number.
type Id = (u64, u64);

/// One event to be published. What is empty is left out.
#[derive(Clone, Debug)]
struct Item {
    channel: String,
    format: &'static str,
    kind: &'static str,
    data: String,
    retry: &'static str,
    skip: &'static str,
    length_max: Option<u64>,
    age_max: Option<u64>,
    key: String,
    window_ms: u64,
}

/// An item's result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Receipt {
    id: Id,
    duplicate: bool,
}

/// A request's result: receipts, or a code and the channel that is the reason.
type Outcome = Result<Vec<Receipt>, (String, String)>;

/// An entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: Id,
    fields: Vec<String>,
}

impl Functions {
    async fn load() -> Self {
        Self::load_on(Redis::start().await)
    }

    fn load_on(redis: Redis) -> Self {
        Self::load_with(redis, &[])
    }

    /// Loads as a broker with these settings would.
    fn load_with(redis: Redis, settings: &[(&str, &str)]) -> Self {
        let migrated = command(&["migrate", "--redis", &redis.url()])
            .envs(settings.iter().copied())
            .output()
            .expect("the binary starts");
        assert!(migrated.status.success(), "{migrated:?}");
        let resp = Resp::connect(redis.port());
        Self { redis, resp }
    }

    fn call(&mut self, words: &[&str]) -> Reply {
        self.resp.call(words)
    }

    fn try_call(&mut self, words: &[&str]) -> Reply {
        self.resp.try_call(words)
    }

    /// Calls a function on partition 0.
    fn fcall(&mut self, function: &str, args: &[&str]) -> Reply {
        self.resp.call(&fcall_words(function, args))
    }

    /// [`Functions::fcall`] that must be refused; answers the error.
    fn refused(&mut self, function: &str, args: &[&str]) -> String {
        match self.resp.try_call(&fcall_words(function, args)) {
            Reply::Error(error) => error,
            other => panic!("{function} {args:?} answered {other:?}"),
        }
    }

    /// One call with these requests by a node that has seen nothing.
    fn publish(&mut self, requests: &[&[Item]]) -> Vec<Outcome> {
        self.try_publish(NO_FLOOR, requests).expect("the call is not refused")
    }

    fn try_publish(&mut self, floor: &str, requests: &[&[Item]]) -> Result<Vec<Outcome>, String> {
        match self.resp.try_call(&publish_words(floor, requests)) {
            Reply::Error(error) => Err(error),
            reply => Ok(reply.items().iter().map(outcome).collect()),
        }
    }

    /// Publishes one event and answers its id.
    fn publish_one(&mut self, item: Item) -> Id {
        match self.publish(&[&[item]]).remove(0) {
            Ok(receipts) => receipts[0].id,
            Err(refusal) => panic!("refused: {refusal:?}"),
        }
    }

    /// All entries of a stream; none when it does not exist.
    fn stream(&mut self, key: &str) -> Vec<Entry> {
        self.call(&["XRANGE", key, "-", "+"]).items().iter().map(entry).collect()
    }

    /// All entries of a channel.
    fn channel(&mut self, channel: &str) -> Vec<Entry> {
        self.stream(&key_of(channel))
    }

    /// The refs of the feed without its markers, as channel and id.
    fn refs(&mut self) -> Vec<(Id, String)> {
        let of_event = |entry: &Entry| Some((entry.id, entry.field("ch")?.to_owned()));
        let feed = self.stream(FEED);
        feed.iter().filter(|entry| entry.field("mark").is_none()).filter_map(of_event).collect()
    }

    /// The markers of the feed that begin history anew.
    fn epochs(&mut self) -> Vec<Id> {
        let feed = self.stream(FEED);
        feed.iter().filter(|entry| entry.field("mark") == Some("epoch")).map(|entry| entry.id).collect()
    }

    fn state(&mut self, field: &str) -> Option<String> {
        match self.call(&["HGET", STATE, field]) {
            Reply::Nil => None,
            value => Some(value.text().to_owned()),
        }
    }

    fn number(&mut self, words: &[&str]) -> i64 {
        match self.call(words) {
            Reply::Int(number) => number,
            other => panic!("{words:?} answered {other:?}"),
        }
    }

    /// The server's clock in milliseconds.
    fn now(&mut self) -> u64 {
        let time = self.call(&["TIME"]);
        let part = |i: usize| time.items()[i].text().parse::<u64>().expect("a number");
        part(0) * 1_000 + part(1) / 1_000
    }

    /// Somebody's plain `XADD` to a channel.
    fn xadd(&mut self, channel: &str, id: Id, fields: &[&str]) {
        let (key, id) = (key_of(channel), show(id));
        let words: Vec<&str> = ["XADD", &key, &id].into_iter().chain(fields.iter().copied()).collect();
        self.call(&words);
    }

    /// Every ref names an event that is there, every event has exactly one ref, and ids rise.
    fn assert_feed_and_channels_agree(&mut self, channels: &[&str]) {
        let refs = self.refs();
        assert!(refs.windows(2).all(|pair| pair[0].0 < pair[1].0), "ids rise: {refs:?}");
        for channel in channels {
            let told: Vec<Id> = refs.iter().filter(|(_, name)| name == channel).map(|(id, _)| *id).collect();
            let events = self.channel(channel);
            let there: Vec<Id> =
                events.iter().filter(|event| event.is_event()).map(|event| event.id).collect();
            assert_eq!(told, there, "refs and events of {channel}");
        }
        let unknown = refs.iter().find(|(_, name)| !channels.contains(&name.as_str()));
        assert_eq!(unknown, None, "a ref to a channel that nobody published to");
    }
}

impl Item {
    fn keyed(mut self, key: &str) -> Self {
        self.key = key.into();
        self.window_ms = 600_000;
        self
    }

    fn kept(mut self, length_max: Option<u64>, age_max: Option<u64>) -> Self {
        (self.length_max, self.age_max) = (length_max, age_max);
        self
    }
}

impl Entry {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
    }

    /// Whether a function wrote it.
    fn is_event(&self) -> bool {
        self.fields[0] == "v"
    }
}

/// A plain text event without limits.
fn item(channel: &str, data: &str) -> Item {
    Item {
        channel: channel.into(),
        format: "1",
        kind: "message",
        data: data.into(),
        retry: "",
        skip: "",
        length_max: None,
        age_max: None,
        key: String::new(),
        window_ms: 0,
    }
}

fn fcall_words<'a>(function: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    ["FCALL", function, "1", FEED].into_iter().chain(args.iter().copied()).collect()
}

/// The words of a call. Every item brings a policy of its own.
fn publish_words(floor: &str, requests: &[&[Item]]) -> Vec<String> {
    let optional = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
    let items: Vec<&Item> = requests.iter().copied().flatten().collect();
    let mut words: Vec<String> =
        ["FCALL", "headwater_publish_v1", "1", FEED, floor].map(str::to_owned).to_vec();
    words.push(items.len().to_string());
    words.extend(items.iter().flat_map(|item| [optional(item.length_max), optional(item.age_max)]));
    let mut policy = 0;
    for request in requests {
        words.push(request.len().to_string());
        for item in *request {
            policy += 1;
            let texts = [&item.channel, item.format, item.kind, &item.data, item.retry, item.skip];
            words.extend(texts.map(str::to_owned));
            let window = if item.key.is_empty() { String::new() } else { item.window_ms.to_string() };
            words.extend([policy.to_string(), item.key.clone(), window]);
        }
    }
    words
}

fn outcome(reply: &Reply) -> Outcome {
    match reply {
        Reply::Text(text) => {
            let mut parts = text.strip_prefix('!').expect("a refusal begins with !").splitn(3, '\n');
            let mut part = || parts.next().expect("code, channel and detail").to_owned();
            Err((part(), part()))
        }
        ids => Ok(ids.items().iter().map(receipt).collect()),
    }
}

fn receipt(reply: &Reply) -> Receipt {
    let (text, duplicate) = reply.text().strip_prefix('=').map_or((reply.text(), false), |rest| (rest, true));
    Receipt { id: id(text), duplicate }
}

fn refusal(code: &str, channel: &str) -> Outcome {
    Err((code.into(), channel.into()))
}

fn ids(outcome: &Outcome) -> Vec<Id> {
    outcome.as_ref().expect("published").iter().map(|receipt| receipt.id).collect()
}

fn entry(reply: &Reply) -> Entry {
    let fields = reply.items()[1].items().iter().map(|field| field.text().to_owned()).collect();
    Entry { id: id(reply.items()[0].text()), fields }
}

fn id(text: &str) -> Id {
    let (ms, seq) = text.split_once('-').unwrap_or_else(|| panic!("{text:?} is no id"));
    (ms.parse().expect("milliseconds"), seq.parse().expect("a sequence number"))
}

fn show(id: Id) -> String {
    format!("{}-{}", id.0, id.1)
}

fn key_of(channel: &str) -> String {
    format!("hw:{{0}}:ch:{channel}")
}

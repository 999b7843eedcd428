//! `headwater_publish`: what programs that know nothing of Headwater call.
//!
//! The tests were seen to fail with each check left out: of the size, of names, types and their UTF-8, of the feed and its
//! partition; with data that is JSON by its first character alone, patterns whose magic works, the last rule that
//! matches, and keys that are forgotten or count too short.

use headwater::channel::Channel;

use super::{DAY_MS, Functions, Id, NO_FLOOR, entry, id, item, key_of, show};
use crate::support::Redis;
use crate::support::resp::Reply;

const RETENTION: &str = "hw:{0}:retention";

impl Functions {
    fn tell(&mut self, args: &[&str]) -> Id {
        id(self.fcall("headwater_publish", args).text())
    }

    fn tell_often(&mut self, channel: &str, times: usize) {
        for _ in 0..times {
            self.tell(&[channel, "tick", "x"]);
        }
    }

    fn not_told(&mut self, args: &[&str]) -> String {
        let refs = self.refs().len();
        let error = self.refused("headwater_publish", args);
        assert_eq!(self.refs().len(), refs, "nothing is written: {args:?}");
        error
    }
}

#[tokio::test]
async fn one_call_publishes_and_answers_the_id() {
    let mut store = Functions::load().await;
    let first = store.tell(&["orders", "tick", "text"]);
    let second = store.tell(&["orders", "tick", ""]);
    assert!(second > first);
    let events = store.channel("orders");
    assert_eq!(events[0].id, first);
    assert_eq!(events[0].fields, ["v", "1", "type", "tick", "data", "text"]);
    assert_eq!(events[1].fields, ["v", "1", "type", "tick", "data", ""]);
    assert_eq!(store.number(&["SISMEMBER", super::CHANNELS, "orders"]), 1);
    store.assert_feed_and_channels_agree(&["orders"]);

    store.call(&["DEL", super::FEED]);
    store.tell(&["orders", "tick", "x"]);
    assert_eq!(
        store.stream(super::FEED)[0].fields,
        ["mark", "epoch"],
        "a feed that it creates begins so too"
    );
}

#[tokio::test]
async fn a_feed_that_no_broker_keeps_takes_nothing() {
    let mut store = Functions::load().await;
    store.call(&["FLUSHALL"]);
    let error = store.not_told(&["orders", "tick", "x"]);
    assert_eq!(error, "HWREFUSED no broker keeps the feed hw:{0}:feed; check the prefix and the partition");
    assert_eq!(store.number(&["DBSIZE"]), 0, "nothing is written that nobody would read");
}

#[tokio::test]
async fn wrong_usage_is_told_and_writes_nothing() {
    let mut store = Functions::load().await;
    let usage = "HWREFUSED usage: FCALL headwater_publish 1 <feed> <channel> <type> <data> [key]";
    for args in [&[][..], &["orders"], &["orders", "tick"], &["orders", "tick", "x", "key", "more"]] {
        assert_eq!(store.not_told(args), usage);
    }
    let answer = store.try_call(&["FCALL", "headwater_publish", "0", "hw:{0}:feed", "orders", "tick", "x"]);
    assert_eq!(answer, Reply::Error(usage.into()), "the feed is a key");
    for key in ["hw:{0}", "hw:0:feed", "orders", "hw:{x}:feed"] {
        let answer = store.try_call(&["FCALL", "headwater_publish", "1", key, "orders", "tick", "x"]);
        assert_eq!(answer, Reply::Error("HWREFUSED the key is a feed, as in hw:{0}:feed".into()));
    }
    let largest = "x".repeat(262_144);
    store.tell(&["orders", "tick", &largest]);
    let error = store.not_told(&["orders", "tick", &(largest + "x")]);
    assert_eq!(error, "HWREFUSED the data of one event has at most 262144 bytes");
}

#[tokio::test]
async fn names_that_the_broker_refuses_are_refused_here_too() {
    let mut store = Functions::load().await;
    let long = "x".repeat(201);
    let separators =
        ["\u{85}", "\u{a0}", "\u{1680}", "\u{2000}", "\u{200a}", "\u{2028}", "\u{2029}", "\u{202f}"];
    let mut refused =
        vec!["", "$user:1", "a b", "a\tb", "a\nb", "a,b", "{a", "a}", "\u{0}", "\u{7f}", "\u{9f}"];
    refused.extend(separators);
    refused.extend(["x\u{205f}y", "\u{3000}", long.as_str()]);
    for name in refused {
        assert!(Channel::parse(name).is_err(), "the broker refuses {name:?}");
        let error = store.not_told(&[name, "tick", "x"]);
        assert!(error.starts_with("HWREFUSED "), "{name:?}: {error}");
    }
    let fits = "x".repeat(200);
    for name in
        ["a", "Ünï:çødé/日本\u{1F600}", "a$b", "a*?[b]\\", "\u{200b}\u{feff}\u{10ffff}", fits.as_str()]
    {
        assert!(Channel::parse(name).is_ok(), "the broker takes {name:?}");
        store.tell(&[name, "tick", "x"]);
        assert_eq!(store.channel(name).len(), 1);
    }
}

#[tokio::test]
async fn names_and_types_that_are_no_utf8_are_refused() {
    let mut store = Functions::load().await;
    // Stray and missing continuations, overlong forms, surrogates, beyond the last character, and bytes that would
    // join to a character if what stands between them were taken out.
    let broken: [&[u8]; 12] = [
        b"\x80",
        b"a\xff",
        b"\xc3",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xe2\xc3\xa9\x82\xac",
        b"\xc3\xe2\x82\xac\xa9",
    ];
    for text in broken {
        assert!(std::str::from_utf8(text).is_err());
        for (channel, kind) in [(text, &b"tick"[..]), (b"orders", text)] {
            let words: [&[u8]; 7] =
                [b"FCALL", b"headwater_publish", b"1", b"hw:{0}:feed", channel, kind, b"x"];
            let answer = store.resp.try_call(&words);
            assert!(
                matches!(&answer, Reply::Error(error) if error.starts_with("HWREFUSED ") && error.contains("UTF-8")),
                "{channel:?} {kind:?}: {answer:?}"
            );
        }
    }
    assert_eq!(store.refs().len(), 0);
    assert_eq!(store.number(&["DBSIZE"]), 3, "feed, state and meta: nothing is written");
}

#[tokio::test]
async fn types_that_the_broker_refuses_are_refused_here_too() {
    let mut store = Functions::load().await;
    let long = "x".repeat(201);
    for kind in [
        "",
        "a\nb",
        "a\rb",
        "\u{0}",
        "\u{7f}",
        "\u{80}",
        "\u{9f}",
        "connected",
        "gap",
        "heartbeat",
        "closing",
        &long,
    ] {
        let error = store.not_told(&["orders", kind, "x"]);
        assert!(error.starts_with("HWREFUSED "), "{kind:?}: {error}");
    }
    for kind in ["message", "gaps", "a b", "日本", "\u{a0}", &long[1..]] {
        store.tell(&["orders", kind, "x"]);
    }
    assert_eq!(store.channel("orders").len(), 6);
}

#[tokio::test]
async fn an_object_or_array_is_json_and_everything_else_is_text() {
    let mut store = Functions::load().await;
    for json in ["{}", "[]", "{\"a\":[1,{\"b\":null}]}", " \n[1, 2]\n"] {
        store.tell(&["json", "tick", json]);
    }
    for text in ["", "text", "1", "\"a\"", "null", "{", "[1", "{a}", "{\"a\":1} x", "[1]]", "x{}"] {
        store.tell(&["text", "tick", text]);
    }
    let marks = |store: &mut Functions, channel: &str| {
        store.channel(channel).iter().map(|event| event.fields[1].clone()).collect::<Vec<_>>()
    };
    assert_eq!(marks(&mut store, "json"), ["1j"; 4]);
    assert_eq!(marks(&mut store, "text"), ["1"; 11]);
}

#[tokio::test]
async fn a_key_is_one_event_for_ten_minutes_for_other_programs_and_brokers_alike() {
    let mut store = Functions::load().await;
    let first = store.tell(&["orders", "tick", "0", "k"]);
    assert_eq!(store.tell(&["orders", "tick", "1", "k"]), first);
    let ttl = store.number(&["PTTL", "hw:{0}:idem:6:orders:k"]);
    assert!((590_000..=600_000).contains(&ttl), "{ttl}");
    let broker = store.publish(&[&[item("orders", "2").keyed("k")]]).remove(0).unwrap().remove(0);
    assert_eq!((broker.id, broker.duplicate), (first, true));
    store.publish_one(item("orders", "3").keyed("other"));
    let again = store.tell(&["orders", "tick", "4", "other"]);
    assert_eq!(again, store.channel("orders")[1].id);
    assert!(store.tell(&["orders", "tick", "5", ""]) < store.tell(&["orders", "tick", "6", ""]), "no key");
    assert_eq!(store.channel("orders").len(), 4);

    store.call(&["LPUSH", "hw:{0}:idem:6:orders:list", "x"]);
    let error = store.not_told(&["orders", "tick", "x", "list"]);
    assert!(error.contains("WRONGTYPE"), "{error}");
}

#[tokio::test]
async fn the_first_rule_that_matches_says_what_is_kept() {
    let mut store = Functions::load().await;
    let hour = 3_600_000;
    store.call(&[
        "HSET",
        RETENTION,
        "audit.*",
        "1 10 -",
        "audit.login",
        "0 - 7200000",
        "a*.b*c",
        "3 20 -",
        "%d+.",
        "4 - -",
        "*",
        "5 30 3600000",
    ]);
    let mut ttl = |channel: &str| {
        store.tell(&[channel, "tick", "x"]);
        store.number(&["PTTL", &key_of(channel)])
    };
    assert!(ttl("audit.login") > 2 * hour - 1_000, "the lower number wins");
    assert_eq!(ttl("audit.logout"), -1, "a limit of - is none");
    assert_eq!(ttl("aX.bYc"), -1);
    assert!((hour - 1_000..=hour * 11 / 10 + 1).contains(&ttl("aX-bYc")), "a dot is a dot");
    assert!(ttl("7.") > 0, "the rest of a pattern is literal");
    assert_eq!(ttl("%d+."), -1);
    assert!(ttl("audit") > 0 && ttl("x.audit.") > 0, "the whole name has to match");

    for (channel, least) in [("audit.x", 10), ("aa.bc", 20), ("rest", 30)] {
        store.tell_often(channel, 300);
        let kept = store.channel(channel).len();
        assert!((least..=least + 200).contains(&kept) && kept < 300, "{channel} keeps {kept}");
    }
    store.tell_often("%d+.", 300);
    assert_eq!(store.channel("%d+.").len(), 301);

    store.call(&["DEL", RETENTION]);
    store.tell_often("default", 1_300);
    let kept = store.channel("default").len();
    assert!((1_000..=1_200).contains(&kept), "without rules what the configuration says by default: {kept}");
    let ttl = store.number(&["PTTL", &key_of("default")]);
    assert!(u64::try_from(ttl).unwrap() > DAY_MS - 60_000, "{ttl}");
}

#[tokio::test]
async fn a_channel_of_another_partition_is_told_its_feed() {
    let redis = Redis::start().await;
    let mut store = Functions::load_with(redis, &[("HEADWATER_REDIS__PARTITIONS", "4")]);
    assert_eq!(store.state("partitions"), Some("4".into()));
    // The check value of CRC-16/XMODEM is 0x31c3.
    for (name, right) in [("123456789", 0x31c3 % 4)]
        .into_iter()
        .chain(["a", "b", "orders", "日本"].map(|name| (name, Channel::parse(name).unwrap().partition(4).0)))
    {
        for partition in 0..4 {
            let feed = format!("hw:{{{partition}}}:feed");
            let answer = store.try_call(&["FCALL", "headwater_publish", "1", &feed, name, "tick", "x"]);
            if partition == right {
                let entries = store.call(&["XRANGE", &format!("hw:{{{right}}}:ch:{name}"), "-", "+"]);
                assert_eq!(entry(&entries.items()[0]).id, id(answer.text()));
            } else {
                let told = format!("HWREFUSED events of this channel go to the feed hw:{{{right}}}:feed");
                assert_eq!(answer, Reply::Error(told));
            }
        }
    }
}

#[tokio::test]
async fn what_refuses_a_broker_refuses_other_programs() {
    let mut store = Functions::load().await;
    let ahead = (store.now() + 2 * DAY_MS, 0);
    store.xadd("poisoned", ahead, &["data", "x"]);
    assert_eq!(store.not_told(&["poisoned", "tick", "x"]), format!("HWREFUSED poisoned {}", show(ahead)));
    store.call(&["SET", &key_of("text"), "x"]);
    let error = store.not_told(&["text", "tick", "x"]);
    assert!(error.starts_with("HWREFUSED wrong_type WRONGTYPE"), "{error}");

    let ahead = (store.now() + 3_600_000, 0);
    store.xadd("orders", ahead, &["data", "x"]);
    assert_eq!(store.tell(&["orders", "tick", "x", "k"]), (ahead.0 + 1, 0));
    assert_eq!(store.tell(&["orders", "tick", "x", "k"]), (ahead.0 + 1, 0));
    assert!(store.tell(&["orders", "tick", "x"]) > (ahead.0 + 1, 0));
    store.assert_feed_and_channels_agree(&["orders"]);
    let floor = show((ahead.0 + 1, 0));
    assert!(store.try_publish(&floor, &[&[item("orders", "0")]]).is_ok() && NO_FLOOR < floor.as_str());
}

//! What is measured, on which servers, and which figures count.

use crate::servers::Server;

/// One load.
pub(crate) struct Scenario {
    /// What the report calls it.
    pub(crate) name: &'static str,
    /// What `headwater bench` is told.
    pub(crate) args: &'static [&'static str],
    /// Settings of the broker that differ from the defaults.
    pub(crate) settings: &'static [(&'static str, &'static str)],
    pub(crate) servers: &'static [Server],
    /// Figures of the report, by their names there, and what they are called.
    pub(crate) figures: &'static [(&'static str, &'static str)],
}

pub(crate) const IDLE_ONE: &str = "8,000 idle subscribers of one channel";
pub(crate) const IDLE_MANY: &str = "5,000 idle subscribers of 5,000 channels";
pub(crate) const PACED: &str = "1,000 subscribers, 50 events/s";
pub(crate) const SATURATED: &str = "1,000 subscribers, 64 publishers as fast as they follow";
pub(crate) const CHANNELS: &str = "5,000 channels with one subscriber each, 32 publishers";
pub(crate) const STORM: &str = "2,000 subscribers resume 500 events each";
pub(crate) const NDJSON: &str = "one stream of NDJSON";
pub(crate) const REQUESTS: &str = "32 publishers, one event a request";
pub(crate) const LATENCY: &str = "100 subscribers, 200 events/s";
pub(crate) const STALLED: &str = "10 stalled subscribers, 20 MB each";
pub(crate) const NOT_STALLED: &str = "the same without anybody who stalls";

const ALL: &[Server] = &[Server::Embedded, Server::Redis, Server::Nchan, Server::NchanRedis, Server::AxumSse];
const BROKER: &[Server] = &[Server::Embedded, Server::RedisBeside];
const BROKER_AND_MEMORY: &[Server] = &[Server::Embedded, Server::EmbeddedInMemory, Server::RedisBeside];
const MEMORY: &[(&str, &str)] = &[
    ("server_pss_bytes_per_connection", "PSS per connection"),
    ("connections_per_s", "connections/s"),
    ("server_cpu_us_per_connect", "CPU per connect"),
];
const FANOUT: &[(&str, &str)] = &[
    ("server_cpu_us_per_delivery", "CPU per delivery"),
    ("deliveries_per_s", "deliveries/s"),
    ("delivery_p50_us", "p50"),
    ("delivery_p99_us", "p99"),
    ("load_cores_busy", "load's core busy"),
    ("lost", "lost"),
];
const PUBLISH: &[(&str, &str)] = &[
    ("events_per_s", "events/s"),
    ("server_cpu_us_per_event", "CPU per event"),
    ("server_cores_busy", "server's core busy"),
    ("acknowledgement_p99_us", "acknowledged, p99"),
];

/// Every load, in the order of the report.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = comparisons();
    all.extend(alone());
    all
}

fn comparisons() -> Vec<Scenario> {
    let with_limit = &[Server::Embedded, Server::Redis, Server::Nchan, Server::AxumSse, Server::WriteLoop];
    vec![
        Scenario {
            name: IDLE_ONE,
            args: &["idle", "--connections", "8000", "--duration", "3s"],
            settings: &[],
            servers: ALL,
            figures: MEMORY,
        },
        Scenario {
            name: IDLE_MANY,
            args: &["idle", "--connections", "5000", "--channels", "5000", "--duration", "1s"],
            settings: &[],
            servers: ALL,
            figures: MEMORY,
        },
        Scenario {
            name: PACED,
            args: &["fanout", "--connections", "1000", "--rate", "50", "--duration", "5s"],
            settings: &[],
            servers: with_limit,
            figures: FANOUT,
        },
        Scenario {
            name: SATURATED,
            args: &["fanout", "--connections", "1000", "--publishers", "64", "--duration", "5s"],
            settings: &[],
            servers: with_limit,
            figures: FANOUT,
        },
        Scenario {
            name: CHANNELS,
            args: &["channels", "--channels", "5000", "--publishers", "32", "--duration", "5s"],
            settings: &[],
            servers: ALL,
            figures: &[
                ("server_cpu_us_per_event", "CPU per event"),
                ("events_per_s", "events/s"),
                ("delivery_p99_us", "p99"),
                ("lost", "lost"),
            ],
        },
        Scenario {
            name: STORM,
            args: &["replay-storm", "--connections", "2000", "--events", "500"],
            settings: &[],
            servers: &[Server::Embedded, Server::Redis, Server::Nchan, Server::NchanRedis],
            figures: &[
                ("deliveries_per_s", "events/s"),
                ("redis_reads", "Redis reads"),
                ("storm_s", "seconds"),
                ("server_cpu_us_per_delivery", "CPU per event"),
                ("load_cores_busy", "load's core busy"),
                ("lost", "lost"),
            ],
        },
    ]
}

fn alone() -> Vec<Scenario> {
    vec![
        Scenario {
            name: NDJSON,
            args: &["publish", "--ndjson", "--connections", "1", "--duration", "5s"],
            settings: &[],
            servers: BROKER,
            figures: PUBLISH,
        },
        Scenario {
            name: REQUESTS,
            args: &["publish", "--connections", "32", "--duration", "5s"],
            settings: &[],
            servers: BROKER_AND_MEMORY,
            figures: PUBLISH,
        },
        Scenario {
            name: LATENCY,
            args: &["fanout", "--connections", "100", "--rate", "200", "--duration", "10s"],
            settings: &[],
            servers: BROKER_AND_MEMORY,
            figures: FANOUT,
        },
        Scenario {
            name: STALLED,
            args: &[
                "fanout",
                "--connections",
                "1",
                "--stalled",
                "10",
                "--size",
                "1000",
                "--events",
                "20000",
                "--warm-up",
                "6s",
                "--patience",
                "30s",
            ],
            settings: &[("retention.max_length", "100000"), ("sse.write_timeout", "10m")],
            servers: BROKER,
            figures: &[
                ("server_pss_growth_bytes", "growth of PSS, all ten"),
                ("backlog_bytes", "backlog of each"),
                ("stalled_catch_up_events_per_s", "events/s when they read again"),
                ("lost", "lost"),
            ],
        },
        Scenario {
            name: NOT_STALLED,
            args: &[
                "fanout",
                "--connections",
                "1",
                "--size",
                "1000",
                "--events",
                "20000",
                "--warm-up",
                "6s",
                "--patience",
                "30s",
            ],
            settings: &[("retention.max_length", "100000"), ("sse.write_timeout", "10m")],
            servers: BROKER,
            figures: &[("server_pss_growth_bytes", "growth of PSS"), ("lost", "lost")],
        },
    ]
}

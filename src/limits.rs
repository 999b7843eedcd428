//! Limits: how much one address, one user and everybody together may take of this node.
//!
//! Invariants: a stream holds its [`StreamPermit`] for as long as it lives, so what is counted is what is open; what
//! is remembered about addresses and accounts is bounded, however many come. Neighbours: `http` refuses in the
//! words of the contract, sessions hold the permits.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use crate::metrics::{Counters, Registry, label, observe};

/// Rates are kept for so many addresses or accounts; more share, at random.
const RATES_MAX: u64 = 1 << 20;
/// Rates that have recovered are forgotten once in so many looks.
const FORGET_EVERY: u32 = 4_096;

/// What may be set; `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Streams in total.
    pub connections_max: usize,
    /// Streams from one address.
    pub connections_per_ip: Option<usize>,
    /// Streams of one user.
    pub connections_per_user: Option<usize>,
    /// New streams from one address.
    pub connect_rate: Option<Rate>,
    /// Events from one account, or from one address without an account.
    pub publish_rate: Option<Rate>,
}

/// So many in so long; as many at once, if there were none for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: NonZeroU32,
    /// A second, a minute or an hour.
    pub per: Duration,
}

/// Why something has to wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The node has as many streams as it takes.
    #[error("this node has as many event streams as it takes (limits.connections_max)")]
    Full,
    /// One caller has or wants more than one caller may.
    #[error("{reason}")]
    Limited {
        /// Which limit.
        reason: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// More at once than the rate ever allows.
    #[error("{0} events at once are more than limits.publish_rate ever allows ({1})")]
    TooMany(u32, u32),
}

/// A limit at which something was refused or slowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    ConnectionsMax,
    ConnectionsPerIp,
    ConnectionsPerUser,
    ConnectRate,
    PublishRate,
}

label!(
    Limit, "limit",
    ConnectionsMax => "connections_max", ConnectionsPerIp => "connections_per_ip",
    ConnectionsPerUser => "connections_per_user", ConnectRate => "connect_rate", PublishRate => "publish_rate",
);

/// Who is held to a limit: an address, all of an IPv6 network, or an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// IPv6 addresses count by their network of 64 bits, which is what one customer gets at least.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// A node's limits and what is taken of them.
pub struct Limits {
    options: LimitOptions,
    streams: Mutex<Streams>,
    connects: Option<Rates>,
    publishes: Option<Rates>,
    limited: Counters<Limit>,
}

#[derive(Default)]
struct Streams {
    open: usize,
    by_source: HashMap<Source, usize>,
    by_user: HashMap<Arc<str>, usize>,
}

/// One stream's place. Small where nothing but the total is limited, because every stream has one.
pub struct StreamPermit {
    limits: Arc<Limits>,
    counted: Option<Box<Counted>>,
}

/// Whose streams one counts among.
struct Counted {
    source: Source,
    user: Option<Arc<str>>,
}

impl Limits {
    /// Nothing is taken yet.
    pub fn new(options: LimitOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            streams: Mutex::default(),
            connects: options.connect_rate.map(Rates::new),
            publishes: options.publish_rate.map(Rates::new),
            limited: Counters::default(),
        })
    }

    /// Registers how often limits were met, and what is remembered for it.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        let help = "Times that a limit refused a stream or events, or slowed a publisher down";
        registry.register("limited", help, self.limited.clone());
        let limits = Arc::clone(self);
        let remembered = move || {
            let rates = limits.connects.iter().chain(&limits.publishes);
            rates.map(|rates| rates.limiter.len()).sum::<usize>()
        };
        observe(registry, "rates_remembered", "Addresses and publishers whose rates are known", remembered);
    }

    /// A place for one more stream.
    pub fn admit(self: &Arc<Self>, source: Source, user: Option<&Arc<str>>) -> Result<StreamPermit, Refused> {
        self.try_admit(source, user).map_err(|(limit, refused)| {
            self.limited.of(limit).inc();
            refused
        })
    }

    fn try_admit(
        self: &Arc<Self>,
        source: Source,
        user: Option<&Arc<str>>,
    ) -> Result<StreamPermit, (Limit, Refused)> {
        let options = &self.options;
        if let Some(rates) = &self.connects {
            let too_fast = "too many new event streams from this address (limits.connect_rate)";
            rates.take(&source, 1, too_fast).map_err(|refused| (Limit::ConnectRate, refused))?;
        }
        let mut streams = self.streams.lock();
        if streams.open >= options.connections_max {
            return Err((Limit::ConnectionsMax, Refused::Full));
        }
        let limited =
            |limit, reason| (limit, Refused::Limited { reason, retry_after: Duration::from_secs(2) });
        let held = streams.by_source.get(&source).copied().unwrap_or(0);
        if options.connections_per_ip.is_some_and(|max| held >= max) {
            return Err(limited(
                Limit::ConnectionsPerIp,
                "this address has as many event streams as one may have (limits.connections_per_ip)",
            ));
        }
        let held = user.and_then(|user| streams.by_user.get(user)).copied().unwrap_or(0);
        if options.connections_per_user.is_some_and(|max| held >= max) {
            return Err(limited(
                Limit::ConnectionsPerUser,
                "this user has as many event streams as one may have (limits.connections_per_user)",
            ));
        }
        streams.open += 1;
        // What is not limited need not be counted.
        let user = user.filter(|_| options.connections_per_user.is_some()).cloned();
        if options.connections_per_ip.is_some() {
            *streams.by_source.entry(source).or_default() += 1;
        }
        if let Some(user) = &user {
            *streams.by_user.entry(Arc::clone(user)).or_default() += 1;
        }
        drop(streams);
        let is_counted = options.connections_per_ip.is_some() || user.is_some();
        let counted = is_counted.then(|| Box::new(Counted { source, user }));
        Ok(StreamPermit { limits: Arc::clone(self), counted })
    }

    /// Takes `events` of what an account, or an address without one, may publish.
    pub fn publish(&self, account: Option<&str>, source: Source, events: usize) -> Result<(), Refused> {
        let Some(rates) = &self.publishes else { return Ok(()) };
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        let too_fast = "too many events from this publisher (limits.publish_rate)";
        let taken = match account {
            Some(account) => rates.take(&account, events, too_fast),
            None => rates.take(&source, events, too_fast),
        };
        taken.inspect_err(|_| {
            self.limited.of(Limit::PublishRate).inc();
        })
    }

    /// How many events may be published at once, if that is limited.
    pub fn publish_burst(&self) -> Option<u32> {
        self.publishes.as_ref().map(|rates| rates.rate.count.get())
    }

    /// Open streams.
    pub fn streams(&self) -> usize {
        self.streams.lock().open
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut streams = self.limits.streams.lock();
        streams.open -= 1;
        if let Some(Counted { source, user }) = self.counted.as_deref() {
            give_back(&mut streams.by_source, source);
            if let Some(user) = user {
                give_back(&mut streams.by_user, user);
            }
        }
    }
}

fn give_back<K: Hash + Eq>(held: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = held.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            held.remove(key);
        }
    }
}

/// One rate for each of many.
struct Rates {
    rate: Rate,
    limiter: RateLimiter<u64, HashMapStateStore<u64>, DefaultClock>,
    /// Random, so that nobody can choose to share with somebody else.
    hasher: RandomState,
    looks: AtomicU32,
}

impl Rates {
    fn new(rate: Rate) -> Self {
        let interval = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(interval).expect("an interval of at least a nanosecond");
        let limiter = RateLimiter::hashmap_with_clock(quota.allow_burst(rate.count), DefaultClock::default());
        Self { rate, limiter, hasher: RandomState::new(), looks: AtomicU32::new(0) }
    }

    fn take(&self, who: &impl Hash, count: u32, too_fast: &'static str) -> Result<(), Refused> {
        let Some(wanted) = NonZeroU32::new(count) else { return Ok(()) };
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGET_EVERY) {
            self.limiter.retain_recent();
        }
        let key = self.hasher.hash_one(who) % RATES_MAX;
        match self.limiter.check_key_n(&key, wanted) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                let retry_after = not_until.wait_time_from(DefaultClock::default().now());
                Err(Refused::Limited { reason: too_fast, retry_after })
            }
            Err(most) => Err(Refused::TooMany(count, most.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: LimitOptions = LimitOptions {
        connections_max: usize::MAX,
        connections_per_ip: None,
        connections_per_user: None,
        connect_rate: None,
        publish_rate: None,
    };

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    fn is_limited<T>(result: &Result<T, Refused>) -> bool {
        matches!(result, Err(Refused::Limited { .. }))
    }

    #[test]
    fn ipv6_counts_by_network_and_ipv4_by_address_however_it_is_written() {
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }

    /// Seen to fail with the count of an address that is not given back.
    #[test]
    fn a_place_is_free_again_once_its_stream_is_gone() {
        let limits = Limits::new(LimitOptions {
            connections_max: 3,
            connections_per_ip: Some(2),
            connections_per_user: Some(1),
            ..NONE
        });
        let (here, there) = (source("192.0.2.1"), source("192.0.2.2"));
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let first = limits.admit(here, Some(&ann)).unwrap();
        assert!(is_limited(&limits.admit(there, Some(&ann))), "one of a user's");
        let _second = limits.admit(here, Some(&bob)).unwrap();
        assert!(is_limited(&limits.admit(here, None)), "two from an address");
        let _third = limits.admit(there, None).unwrap();
        assert!(matches!(limits.admit(there, None), Err(Refused::Full)));
        drop(first);
        assert_eq!(limits.streams(), 2);
        let _again = limits.admit(here, Some(&ann)).unwrap();
        let streams = limits.streams.lock();
        assert_eq!((streams.by_source.len(), streams.by_user.len()), (2, 2));
    }

    #[test]
    fn a_rate_is_one_senders_own_and_says_when_it_recovers() {
        let rate = Rate { count: NonZeroU32::new(10).unwrap(), per: Duration::from_secs(3_600) };
        let limits = Limits::new(LimitOptions { publish_rate: Some(rate), connect_rate: Some(rate), ..NONE });
        let (here, there) = (source("192.0.2.1"), source("192.0.2.2"));
        limits.publish(Some("key a"), here, 7).unwrap();
        limits.publish(Some("key a"), there, 3).unwrap();
        match limits.publish(Some("key a"), here, 1) {
            Err(Refused::Limited { retry_after, .. }) => {
                assert!(retry_after > Duration::from_secs(300) && retry_after <= Duration::from_secs(360));
            }
            other => panic!("{other:?}"),
        }
        limits.publish(Some("key b"), here, 10).unwrap();
        limits.publish(None, here, 10).unwrap();
        assert!(is_limited(&limits.publish(None, here, 1)));
        limits.publish(None, there, 1).unwrap();
        assert_eq!(limits.publish(None, there, 11), Err(Refused::TooMany(11, 10)));
        for _ in 0..10 {
            drop(limits.admit(here, None).unwrap());
        }
        assert!(is_limited(&limits.admit(here, None)) && limits.admit(there, None).is_ok());
    }

    #[test]
    fn what_is_remembered_of_many_senders_is_bounded() {
        let rate = Rate { count: NonZeroU32::new(1_000_000).unwrap(), per: Duration::from_secs(1) };
        let limits = Limits::new(LimitOptions { connect_rate: Some(rate), ..NONE });
        for n in 0..200_000u32 {
            drop(limits.admit(Source::of(IpAddr::V4(n.into())), None).unwrap());
        }
        let remembered = limits.connects.as_ref().unwrap().limiter.len();
        assert!(remembered < 100_000, "{remembered} are remembered, though most have recovered");
    }
}

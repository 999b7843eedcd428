//! What the log on Redis counts, and the state of its connections.

use std::sync::Arc;

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::Server;
use parking_lot::Mutex;
use prometheus_client::metrics::MetricType;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::connection::Connections;
use crate::metrics::{Counter, Label, Registry, label, observe_labelled};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Append,
    News,
    Follow,
    History,
    Control,
}

label!(
    Purpose, "purpose",
    Append => "append", News => "news", Follow => "follow", History => "history",
    Control => "control",
);

/// Connections of one purpose and how often they were made anew.
struct Watched {
    clients: Vec<Client>,
    reconnects: Mutex<Reconnects>,
}

/// Counted when somebody looks: the driver announces each new connection, and a receiver that is behind is
/// told how many it missed.
struct Reconnects {
    receivers: Vec<Receiver<Server>>,
    count: u64,
}

impl Watched {
    fn new(clients: Vec<&Client>) -> Self {
        let clients: Vec<_> = clients.into_iter().cloned().collect();
        let receivers = clients.iter().map(Client::reconnect_rx).collect();
        Self { clients, reconnects: Mutex::new(Reconnects { receivers, count: 0 }) }
    }

    fn connected(&self) -> u64 {
        self.clients.iter().filter(|client| client.is_connected()).count() as u64
    }

    fn reconnects(&self) -> u64 {
        let Reconnects { receivers, count } = &mut *self.reconnects.lock();
        for receiver in receivers {
            loop {
                *count += match receiver.try_recv() {
                    Ok(_) => 1,
                    Err(TryRecvError::Lagged(missed)) => missed,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                };
            }
        }
        *count
    }
}

/// Registers the connections, and `foreign`, the entries that no function wrote.
pub(super) fn register(registry: &mut Registry, connections: &Connections, foreign: Counter) {
    let watch = |purpose: &Purpose| Watched::new(connections.of(*purpose));
    let connected: Arc<[Watched]> = Purpose::ALL.iter().map(watch).collect();
    let reconnects = Arc::clone(&connected);
    observe_labelled(
        registry,
        "redis_connections",
        "Connections to Redis that are up",
        MetricType::Gauge,
        move |purpose: Purpose| connected[purpose as usize].connected(),
    );
    observe_labelled(
        registry,
        "redis_reconnects",
        "Connections to Redis that were made anew",
        MetricType::Counter,
        move |purpose: Purpose| reconnects[purpose as usize].reconnects(),
    );
    registry.register("foreign_entries", "Entries met in channels that were not published", foreign);
}

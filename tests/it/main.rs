//! Integration tests: the real binary, real `redis-server` processes, real sockets, one sentence a test.
//!
//! Every test states something that `headwater`'s users may rely on, most of them for both stores (see
//! `both_stores!` in `support.rs`). Nothing here shares code with the product's own encoder or reader: what
//! is proven is what an independent client sees. Random tests print their seed; `HEADWATER_TEST_SEED` replays it.

#[cfg(test)]
#[macro_use]
mod support;

#[cfg(test)]
mod access;
#[cfg(test)]
mod access_matrix;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod bodies;
#[cfg(test)]
mod browser;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod contract_control;
#[cfg(test)]
mod contract_publish;
#[cfg(test)]
mod contract_subscribe;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod detached;
#[cfg(test)]
mod earthquakes;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod functions;
#[cfg(test)]
mod half_open;
#[cfg(test)]
mod history_lost;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod injection;
#[cfg(test)]
mod layout;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod management;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod proxies;
#[cfg(test)]
mod proxy_cut;
#[cfg(test)]
mod redis_refuses;
#[cfg(test)]
mod redis_view;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod revocations;
#[cfg(test)]
mod shutdown;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod tls;

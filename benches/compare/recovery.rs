//! How soon events are delivered again after Redis was away: `redis-server` is killed, stays away, and is started again
//! with what it had acknowledged, while somebody goes on publishing and somebody goes on reading.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::measure::Results;
use crate::servers::{LOAD_CORE, Redis, Server, Setup};

pub(crate) const NAME: &str = "Redis is killed and comes back after 3 s";
/// From the moment when Redis answers again to the first delivery, in milliseconds.
pub(crate) const FIGURE: &str = "resumed_after_ms";

const AWAY: Duration = Duration::from_secs(3);
const PUBLISH_INTERVAL: Duration = Duration::from_millis(5);
const DEADLINE: Duration = Duration::from_secs(30);

/// Kills Redis once and adds how long it took from its return to the next delivery.
pub(crate) fn run(setup: &Setup, results: &mut Results) -> anyhow::Result<()> {
    let mut running = setup.start_on(Redis::start(setup.launcher, LOAD_CORE, true)?, &[])?;
    let arrivals = subscribe(running.address)?;
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (address, stop) = (running.address, Arc::clone(&stop));
        thread::spawn(move || publish_until(address, &stop))
    };
    arrivals.recv_timeout(DEADLINE).context("no event arrived before Redis was killed")?;
    let redis = running.redis.as_mut().context("the broker runs on Redis")?;
    redis.kill()?;
    // What is still on its way arrives long before Redis is back.
    let away = Instant::now() + AWAY / 2;
    sleep(AWAY);
    let back = redis.restart()?;
    let resumed = loop {
        let arrived = arrivals.recv_timeout(DEADLINE).context("no event arrived after Redis was back")?;
        if arrived > away {
            break arrived;
        }
    };
    stop.store(true, Ordering::Relaxed);
    let _ = publisher.join();
    let after = resumed.saturating_duration_since(back).as_secs_f64() * 1_000.0;
    results.add(NAME, Server::RedisBeside.name(), FIGURE, after);
    Ok(())
}

/// When each event arrives.
fn subscribe(address: SocketAddr) -> anyhow::Result<Receiver<Instant>> {
    let mut socket = TcpStream::connect(address).context("the broker takes connections")?;
    write!(socket, "GET /events?channels=recovery HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let (sender, receiver) = sync_channel(100_000);
    let mut lines = BufReader::new(socket).lines().map_while(Result::ok);
    lines.find(|line| line == "event: connected").context("the stream begins with connected")?;
    thread::spawn(move || {
        for _ in lines.filter(|line| line.starts_with("data: number ")) {
            if sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Publishes all the time; what is refused is not tried again.
fn publish_until(address: SocketAddr, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let _ = publish(address, number);
        sleep(PUBLISH_INTERVAL);
    }
}

fn publish(address: SocketAddr, number: u64) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    let data = format!("number {number}");
    write!(
        socket,
        "POST /channels/recovery/events HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{data}",
        data.len()
    )?;
    socket.read_to_end(&mut Vec::new()).map(drop)
}

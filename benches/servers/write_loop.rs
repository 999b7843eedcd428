//! The limit: what the kernel alone costs. Every event is written to one socket after the other, blocking, one
//! `write` each; no channels, no history, no HTTP beyond what a load generator needs. Measured beside the broker by
//! `benches/compare.sh`.
//!
//! `cargo run --release --example write_loop [ADDRESS]`; any `GET` subscribes and any `POST` publishes its body.

use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
const CREATED: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";

#[derive(Default)]
struct Subscribers {
    sockets: Vec<TcpStream>,
    /// Number of the last event.
    last: u64,
}

enum Request {
    Subscribe,
    Publish(Vec<u8>),
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8082".to_owned());
    let listener = TcpListener::bind(address)?;
    let subscribers = Arc::new(Mutex::new(Subscribers::default()));
    for socket in listener.incoming() {
        let (socket, subscribers) = (socket?, Arc::clone(&subscribers));
        // A client that breaks off ends its own thread.
        thread::spawn(move || serve(socket, &subscribers));
    }
    Ok(())
}

fn serve(mut socket: TcpStream, subscribers: &Mutex<Subscribers>) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    loop {
        match read_request(&mut reader)? {
            Request::Subscribe => {
                socket.write_all(HEAD)?;
                subscribers.lock().sockets.push(socket);
                return Ok(());
            }
            Request::Publish(data) => {
                publish(&data, &mut subscribers.lock());
                socket.write_all(CREATED)?;
            }
        }
    }
}

fn publish(data: &[u8], subscribers: &mut Subscribers) {
    subscribers.last += 1;
    let begin = format!("id: {:026}\nevent: message\ndata: ", subscribers.last);
    let block = [begin.as_bytes(), data, b"\n\n"].concat();
    // Whoever is gone is not written to again.
    subscribers.sockets.retain_mut(|socket| socket.write_all(&block).is_ok());
}

fn read_request(reader: &mut impl BufRead) -> Result<Request> {
    let (mut is_get, mut length) = (false, 0);
    for number in 0.. {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        is_get |= number == 0 && line.starts_with("get ");
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap_or(0);
        }
    }
    if is_get {
        return Ok(Request::Subscribe);
    }
    let mut data = vec![0; length];
    reader.read_exact(&mut data)?;
    Ok(Request::Publish(data))
}

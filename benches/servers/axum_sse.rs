//! What one writes first: axum's `Sse` over a `tokio::sync::broadcast` per channel. Nothing is kept, and whoever
//! lags behind loses events. Measured beside the broker by `benches/compare.sh`.
//!
//! `cargo run --release --example axum_sse [ADDRESS]`, then `GET /events?channel=a` and `POST /publish?channel=a`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender, channel};

/// Events that a subscriber may lag behind.
const CAPACITY: usize = 1024;

type Channels = Arc<Mutex<HashMap<String, Sender<Arc<str>>>>>;

#[derive(Deserialize)]
struct Of {
    channel: String,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8081".to_owned());
    let router = Router::new()
        .route("/events", get(subscribe))
        .route("/publish", post(publish))
        .with_state(Channels::default());
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, router).await
}

async fn subscribe(
    State(channels): State<Channels>,
    Query(of): Query<Of>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let receiver = sender(&channels, of.channel).subscribe();
    Sse::new(stream::unfold(receiver, |mut receiver| async {
        let data = next(&mut receiver).await?;
        Some((Ok(Event::default().event("message").data(&*data)), receiver))
    }))
}

async fn next(receiver: &mut Receiver<Arc<str>>) -> Option<Arc<str>> {
    loop {
        match receiver.recv().await {
            Ok(data) => return Some(data),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

async fn publish(State(channels): State<Channels>, Query(of): Query<Of>, body: String) -> StatusCode {
    // Without a subscriber there is nobody to tell.
    let _ = sender(&channels, of.channel).send(body.into());
    StatusCode::CREATED
}

fn sender(channels: &Channels, name: String) -> Sender<Arc<str>> {
    channels.lock().entry(name).or_insert_with(|| channel(CAPACITY).0).clone()
}

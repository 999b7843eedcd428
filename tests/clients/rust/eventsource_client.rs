//! The crate `eventsource-client`, which reconnects and resumes by itself as long as it knows its position.
//!
//! Runs within the tests and reports as the other client programs do. What it adds to the crate is told in
//! docs/clients.md: a refused connection takes the position away, so the client is then made anew.

use std::time::Duration;

use eventsource_client::{BoxStream, Client, ClientBuilder, ReconnectOptions, SSE};
use futures_util::StreamExt;

/// How long to wait before a server that was not reached is tried again; `retry:` replaces it.
const DELAY: Duration = Duration::from_millis(100);

/// Receives until the task is dropped; hands over position, type and data of each event. `careless` takes the
/// crate as its documentation shows it.
pub(crate) async fn receive(url: String, careless: bool, mut on_event: impl FnMut(&str, &str, &str)) {
    let mut position = None;
    let mut stream = connect(&url, None);
    loop {
        match stream.next().await {
            Some(Ok(SSE::Event(event))) => {
                let knows_position = event.id.is_some();
                position = event.id.or(position);
                on_event(position.as_deref().unwrap_or_default(), &event.event_type, &event.data);
                if !knows_position && !careless {
                    tokio::time::sleep(event.retry.map_or(DELAY, Duration::from_millis)).await;
                    stream = connect(&url, position.as_deref());
                }
            }
            // An error is reported, and the stream goes on by itself.
            Some(Ok(SSE::Connected(_) | SSE::Comment(_)) | Err(_)) => {}
            None => return,
        }
    }
}

fn connect(url: &str, position: Option<&str>) -> BoxStream<eventsource_client::Result<SSE>> {
    let reconnect = ReconnectOptions::reconnect(true).retry_initial(true).delay(DELAY).backoff_factor(1);
    let client = ClientBuilder::for_url(url).expect("a URL").reconnect(reconnect.build());
    let client = match position {
        Some(position) => client.last_event_id(position.to_owned()),
        None => client,
    };
    client.build_http().stream()
}

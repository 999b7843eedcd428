//! NDJSON: streams of lines on few connections, the way to publish much.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::publishers::{Until, receive};
use super::stamp::Stamp;
use super::target::Target;

/// Sent at once, about.
const BLOCK_BYTES: usize = 64 * 1024;

/// What a stream publishes.
#[derive(Clone)]
pub(super) struct LineStream {
    pub(super) target: Arc<Target>,
    pub(super) channels: Arc<[String]>,
    /// Of an event's data, in bytes.
    pub(super) size: usize,
    pub(super) patience: Duration,
}

/// What the server says of a stream.
#[derive(Deserialize)]
struct Summary {
    published: u64,
    duplicates: u64,
}

impl LineStream {
    /// Sends so many streams at once; answers how many events were sent, and how many the server says it published.
    pub(super) async fn publish(&self, streams: usize, until: Until) -> anyhow::Result<(u64, u64)> {
        let mut tasks = JoinSet::new();
        for number in 0..streams {
            // The rest that does not divide goes to the first ones.
            let (share, rest) = (until.events / streams as u64, until.events % streams as u64);
            let events = share + u64::from((number as u64) < rest);
            let stream = self.clone();
            tasks.spawn(async move { stream.publish_one(number, Until { events, ..until }).await });
        }
        let (mut sent, mut published) = (0, 0);
        while let Some(ended) = tasks.join_next().await {
            let (of_sent, of_published) = ended.context("a stream failed")??;
            sent += of_sent;
            published += of_published;
        }
        Ok((sent, published))
    }

    async fn publish_one(&self, sequence: usize, until: Until) -> anyhow::Result<(u64, u64)> {
        let mut socket = self.target.connect_lines().await?;
        socket.write_all(self.target.line_stream().as_bytes()).await.context("a stream cannot be sent")?;
        let (begin, mut sent) = (Instant::now(), 0);
        let (mut block, mut data) = (Vec::with_capacity(BLOCK_BYTES + self.size + 256), Vec::new());
        while sent < until.events && begin.elapsed() < until.duration {
            block.clear();
            while block.len() < BLOCK_BYTES && sent < until.events {
                let channel = &self.channels[usize::try_from(sent)? % self.channels.len()];
                Stamp { sequence, number: sent, sent_us: 0 }.write(self.size, &mut data);
                let parts = [b"{\"channel\":\"", channel.as_bytes(), b"\",\"data\":\"", &data, b"\"}\n"];
                for part in parts {
                    block.extend_from_slice(part);
                }
                sent += 1;
            }
            self.send_chunk(&mut socket, &block).await?;
        }
        socket.write_all(b"0\r\n\r\n").await.context("a stream cannot be ended")?;
        block.resize(BLOCK_BYTES, 0);
        let answered = timeout(self.patience, receive(&mut socket, &mut block)).await;
        let (answer, body) =
            answered.with_context(|| format!("no answer came for {:?}", self.patience))??;
        let body = String::from_utf8_lossy(&body);
        if answer.status() != Some(200) {
            return Err(anyhow!(
                "a stream was answered {}: {}",
                answer.status().unwrap_or_default(),
                body.trim()
            ));
        }
        let summary: Summary = serde_json::from_str(&body).context("the answer to a stream is no summary")?;
        Ok((sent, summary.published + summary.duplicates))
    }

    async fn send_chunk(&self, socket: &mut TcpStream, block: &[u8]) -> anyhow::Result<()> {
        let size = format!("{:x}\r\n", block.len());
        let writing = async {
            for part in [size.as_bytes(), block, b"\r\n"] {
                socket.write_all(part).await?;
            }
            std::io::Result::Ok(())
        };
        let written = timeout(self.patience, writing).await;
        written
            .with_context(|| format!("the server took nothing for {:?}", self.patience))?
            .context("the server ended a stream of lines before its end")
    }
}

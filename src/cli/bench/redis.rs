//! How often Redis was asked for what, as it counts itself (`INFO commandstats`).
//!
//! Commands that a function or script runs within the server are counted beside the call of it, so what a server of
//! events asks for is told by the calls that only clients make.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, anyhow};
use reqwest::Url;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Commands by which clients read: functions, scripts, and new entries of streams.
const READS: [&str; 5] = ["fcall", "fcall_ro", "eval", "evalsha", "xread"];

/// A connection that only looks.
pub(super) struct Redis {
    socket: BufReader<TcpStream>,
}

/// Calls of each command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls(pub(super) BTreeMap<String, u64>);

impl Redis {
    /// Connects, and says who asks if the address tells.
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "redis");
        let url = parsed
            .with_context(|| format!("--redis {url:?}: expected an address as in redis://127.0.0.1:6379"))?;
        let host = url.host_str().unwrap_or("127.0.0.1").trim_matches(['[', ']']);
        let address = (host, url.port().unwrap_or(6379));
        let socket = TcpStream::connect(address)
            .await
            .with_context(|| format!("--redis: cannot connect to {}:{}", address.0, address.1))?;
        let mut redis = Self { socket: BufReader::new(socket) };
        if let Some(password) = url.password() {
            let user = if url.username().is_empty() { "default" } else { url.username() };
            redis.call(&["AUTH", user, password]).await?;
        }
        Ok(redis)
    }

    /// What has been called since the server started.
    pub(super) async fn calls(&mut self) -> anyhow::Result<Calls> {
        Ok(Calls::parse(&self.call(&["INFO", "commandstats"]).await?))
    }

    /// Sends a command that is answered with a status or a text.
    async fn call(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            let _ = write!(request, "${}\r\n{word}\r\n", word.len());
        }
        self.socket.write_all(request.as_bytes()).await.context("--redis: the connection broke")?;
        let mut line = String::new();
        self.socket.read_line(&mut line).await.context("--redis: the connection broke")?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+", status)) => Ok(status.to_owned()),
            Some(("$", length)) => {
                let length = length.parse::<usize>().ok().filter(|length| *length <= ANSWER_BYTES_MAX);
                let mut bytes = vec![0; length.context("--redis: the answer is too long")? + 2];
                self.socket.read_exact(&mut bytes).await.context("--redis: the connection broke")?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Err(anyhow!("--redis: {} was answered {line:?}", words[0])),
        }
    }
}

impl Calls {
    /// Reads lines as in `cmdstat_xread:calls=3,usec=...`.
    fn parse(info: &str) -> Self {
        let call = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        Self(info.lines().filter_map(call).collect())
    }

    /// What came on top of `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let added = |(name, calls): (&String, &u64)| {
            let added = calls.saturating_sub(earlier.0.get(name).copied().unwrap_or_default());
            // The look itself is none of the broker's calls.
            (added > 0 && name != "info").then(|| (name.clone(), added))
        };
        Self(self.0.iter().filter_map(added).collect())
    }

    /// Calls by which clients read.
    pub(super) fn reads(&self) -> u64 {
        READS.iter().filter_map(|name| self.0.get(*name)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_between_two_looks() {
        let before =
            Calls::parse("# Commandstats\r\ncmdstat_xread:calls=3,usec=9\r\ncmdstat_info:calls=1,usec=1\r\n");
        let after = Calls::parse(
            "cmdstat_xread:calls=5,usec=9\r\ncmdstat_info:calls=2,usec=1\r\ncmdstat_fcall:calls=4,usec=1\r\ncmdstat_xrange:calls=9,usec=1\r\n",
        );
        let between = after.since(&before);
        assert_eq!(between.reads(), 6);
        assert_eq!(between.0.len(), 3, "{between:?}");
    }
}

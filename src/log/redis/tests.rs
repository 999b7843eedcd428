//! The Redis log against the conformance suite, each case on a real redis-server of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use fred::types::Value;
use tempfile::TempDir;

use super::connection::{Effect, call, connect_one};
use super::*;
use crate::log::conformance::{self, Harness, KEEP};

/// A redis-server process that ends with the test.
struct Server {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need redis-server: apt-get install redis-server");
        Self { child, port, _dir: dir }
    }

    async fn options(&self) -> RedisOptions {
        let options = RedisOptions {
            endpoint: Endpoint {
                url: format!("redis://127.0.0.1:{}", self.port),
                username: None,
                password: None,
            },
            prefix: "hw".to_owned(),
            partitions: 1,
            pool_size: 2,
            allow_eviction: false,
            retention: RetentionRules::new(Vec::new(), KEEP),
        };
        let up = async {
            while connect_one(&options.endpoint).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(conformance::DEADLINE, up).await.expect("redis-server answers");
        options
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Redis<const PARTITIONS: u16> {
    log: RedisLog,
    _server: Server,
}

#[async_trait]
impl<const PARTITIONS: u16> Harness for Redis<PARTITIONS> {
    async fn open() -> Self {
        let server = Server::start();
        let options = RedisOptions { partitions: PARTITIONS, ..server.options().await };
        Self { log: RedisLog::open(&options).await.unwrap(), _server: server }
    }

    fn log(&self) -> &dyn Log {
        &self.log
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    async fn spoil(&self, channel: &Channel) {
        let key = self.log.keys.channel(self.log.partition_of(channel), channel);
        let args = [key, "no stream".to_owned()].map(Value::from).to_vec();
        call(self.log.connections.news(), Effect::Write, "SET", args).await.unwrap();
    }
}

mod one_partition {
    use super::*;
    conformance::suite!(Redis<1>);
}

mod five_partitions {
    use super::*;
    conformance::suite!(Redis<5>);
}

/// Seen to fail when only the watermark is looked for.
#[tokio::test]
async fn a_receipt_that_history_no_longer_holds_is_a_rollback_though_the_watermark_is_there() {
    let redis = Redis::<1>::open().await;
    let (log, name, partition) = (&redis.log, conformance::channel("a"), Partition(0));
    let watermark = conformance::append_text(log, &name, "seen").await;
    let lost = conformance::append_text(log, &name, "only acknowledged").await;
    let args = [log.keys.feed(partition), lost.to_string()].map(Value::from).to_vec();
    call(log.connections.news(), Effect::Write, "XDEL", args).await.unwrap();
    let rolled_back =
        async { while log.follow(partition, watermark).await.unwrap() != Followed::RolledBack {} };
    tokio::time::timeout(conformance::DEADLINE, rolled_back).await.expect("the follower learns of it");
    let tail = log.reset(partition, watermark).await.unwrap();
    assert!(tail.epoch > lost, "{tail:?} begins above {lost}");
}

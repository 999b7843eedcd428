//! `headwater migrate`: brings the layout in Redis up to this binary, or says what that would take.
//!
//! `serve` does the same at start; this is for those who want it done, or looked at, before.

use std::io::{self, Write};

use anyhow::anyhow;
use clap::Args;
use headwater::config::Config;
use headwater::log::{LogError, redis};

use super::{ConfigArgs, Failure, output};

/// Bring the Redis layout up to this binary.
#[derive(Args)]
pub(crate) struct MigrateArgs {
    /// Print the steps and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Prints the steps, done or to be done.
pub(super) async fn run(arguments: MigrateArgs) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    migrate(&config, arguments.dry_run, &mut io::stdout()).await
}

async fn migrate(config: &Config, dry_run: bool, out: &mut impl Write) -> Result<(), Failure> {
    let Some(options) = config.redis_options().map_err(Failure::usage)? else {
        return Err(Failure::usage(anyhow!(
            "there is nothing to migrate without Redis; name one with --redis or redis.url"
        )));
    };
    let steps = redis::migrate(&options, dry_run).await.map_err(|e| match e {
        LogError::Unavailable(_) | LogError::Unknown(_) => Failure::unavailable(e),
        LogError::Refused(_) => Failure::usage(e),
        LogError::Damaged(_) | LogError::Channel(_) | LogError::BadCursor => Failure::internal(e),
    })?;
    if steps.is_empty() {
        return output::line(out, "the layout is up to date");
    }
    let tense = if dry_run { "would" } else { "did" };
    steps.iter().try_for_each(|step| output::line(out, &format!("{tense} {step}")))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use headwater::config::{Flag, NodeId, Sources};

    use super::super::Exit;
    use super::super::testing::{soon, told};
    use super::*;

    /// Ends the server with the test.
    struct RedisServer(Child);

    impl Drop for RedisServer {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn config(port: Option<u16>) -> Config {
        let mut sources = Sources::defaults(NodeId::parse("n").unwrap());
        let url = port.map(|port| format!("redis://127.0.0.1:{port}"));
        sources.flags =
            url.map(|value| Flag { name: "--redis", key: "redis.url", value }).into_iter().collect();
        Config::load(&sources).unwrap()
    }

    async fn migrated(config: &Config, dry_run: bool) -> Result<String, Failure> {
        let mut out = Vec::new();
        migrate(config, dry_run, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn a_dry_run_changes_nothing_and_a_second_run_finds_nothing_to_do() {
        let port = free_port();
        let _server = RedisServer(
            Command::new("redis-server")
                .args([
                    "--port",
                    &port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .stdout(Stdio::null())
                .spawn()
                .expect("these tests need redis-server: apt-get install redis-server"),
        );
        let config = config(Some(port));
        let planned = soon(async {
            loop {
                match migrated(&config, true).await {
                    Ok(planned) => break planned,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
        assert!(
            planned.lines().count() > 1 && planned.lines().all(|line| line.starts_with("would ")),
            "{planned}"
        );
        assert_eq!(migrated(&config, true).await.unwrap(), planned);
        assert_eq!(migrated(&config, false).await.unwrap(), planned.replace("would ", "did "));
        for dry_run in [true, false] {
            assert_eq!(migrated(&config, dry_run).await.unwrap(), "the layout is up to date\n");
        }
    }

    #[tokio::test]
    async fn without_redis_there_is_nothing_to_migrate_and_a_redis_that_is_away_is_unavailable() {
        assert_eq!(told(migrated(&config(None), false).await.unwrap_err()).0, Exit::Usage);
        let away = soon(migrated(&config(Some(free_port())), false)).await.unwrap_err();
        assert_eq!(told(away).0, Exit::Unavailable);
    }
}

//! `headwater token`: makes a token with the configured secret.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use headwater::auth::mint::{self, Order};
use headwater::auth::{Algorithm, Granted};
use headwater::channel::check_user;
use headwater::clock;
use headwater::config::{Config, Sources};
use ulid::Ulid;

use super::{Failure, output};

/// Make a token (JWT) with the configured secret.
#[derive(Args)]
pub(crate) struct TokenArgs {
    /// Id of the user that the token is for
    #[arg(long, value_name = "ID")]
    sub: Option<String>,
    /// Channels that it may subscribe to, as in news.* or user.{sub}.*
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    subscribe: Vec<String>,
    /// Channels that it may publish to
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    publish: Vec<String>,
    /// It may do everything
    #[arg(long)]
    admin: bool,
    /// How long it counts, such as 15m or 8h
    #[arg(long, value_name = "D", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Configuration file in TOML that names the secret; repeat it to layer several, later ones win
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

/// Prints the token alone, so that a script can take it.
pub(super) fn run(arguments: TokenArgs) -> Result<(), Failure> {
    let sources = Sources::of_process(arguments.config.clone(), Vec::new());
    let config = Config::load(&sources).map_err(Failure::usage)?;
    let token = token(arguments, &config, clock::unix_ms(), &mut io::stderr())?;
    output::line(&mut io::stdout(), &token)
}

fn token(
    arguments: TokenArgs,
    config: &Config,
    now_ms: u64,
    notes: &mut impl Write,
) -> Result<String, Failure> {
    let jwt = &config.auth.jwt;
    let Some(secret) = jwt.signing_secret().map_err(Failure::usage)? else {
        return Err(Failure::usage(anyhow!(
            "there is no secret to sign with: set auth.jwt.secret or auth.jwt.secret_file \
             (HEADWATER_AUTH__JWT__SECRET); tokens for other keys come from their issuer"
        )));
    };
    if let Some(sub) = &arguments.sub {
        check_user(sub).map_err(|reason| Failure::usage(anyhow!("--sub: {reason}")))?;
    }
    if arguments.ttl > jwt.lifetime_max {
        // Nothing can be done about a standard error that is closed.
        let _ = writeln!(
            notes,
            "headwater: the token counts for auth.jwt.lifetime_max ({}) only; raise that if --ttl is meant",
            humantime::format_duration(jwt.lifetime_max)
        );
    }
    let order = Order {
        sub: arguments.sub,
        jti: Ulid::from_parts(now_ms, rand::random()).to_string(),
        ttl: arguments.ttl,
        granted: Granted {
            subscribe: arguments.subscribe,
            publish: arguments.publish,
            admin: arguments.admin,
        },
        issuer: jwt.issuer.first().cloned(),
        audience: jwt.audience.first().cloned(),
    };
    let algorithm = jwt.algorithms.first().copied().unwrap_or(Algorithm::HS256);
    mint::mint(&secret, algorithm, &order, now_ms).map_err(|reason| Failure::internal(anyhow!(reason)))
}

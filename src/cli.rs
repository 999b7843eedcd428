//! The command line: one module per subcommand, and how failures become messages and exit codes.
//!
//! Invariant: standard output carries results only, everything else goes to standard error. Neighbours:
//! `config.rs` takes the flags of `serve` and `check`; the client commands talk HTTP to a running broker.

mod adopt;
mod bench;
mod channels;
mod check;
mod client;
mod id;
mod migrate;
mod output;
mod publish;
mod serve;
mod sse_reader;
mod tail;
#[cfg(test)]
mod testing;
mod token;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use headwater::config::{Config, Flag, Sources};
use tokio::runtime::{Builder, Runtime};

/// A persistent Server-Sent-Events broker on Redis Streams, with an embedded log for one node.
///
/// Without a command it serves. Exit codes: 0 clean, 64 configuration or usage, 69 a needed service is
/// unavailable, 70 internal failure.
#[derive(Parser)]
#[command(name = "headwater", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ConfigArgs,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the broker (the default)
    Serve(ConfigArgs),
    /// Publish an event, or many with --ndjson
    Publish(publish::PublishArgs),
    /// Follow channels and print their events
    Tail(tail::TailArgs),
    /// List the channels that hold events
    Channels(channels::ChannelsArgs),
    /// Make a token with the configured secret
    Token(token::TokenArgs),
    /// Translate an event id: ULID, ms-seq, partition, time
    Id(id::IdArgs),
    /// Validate the configuration and print what is in effect, without secrets
    Check(ConfigArgs),
    /// Bring the Redis layout up to this binary
    Migrate(migrate::MigrateArgs),
    /// Publish entries anew that another program wrote with a plain XADD
    Adopt(adopt::AdoptArgs),
    /// Put load on a server of Server-Sent Events and measure what it costs
    Bench(Box<bench::BenchArgs>),
}

/// Flags that say where the configuration comes from and override parts of it.
#[derive(Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file in TOML; repeat it to layer several, later ones win
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:8080; port 0 prints the port it got
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Redis to use, as in <redis://127.0.0.1:6379>; without one the embedded log serves
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Directory of the embedded log
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Name of this node, unique among the nodes that share a Redis
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
}

impl ConfigArgs {
    /// Loads the configuration of this process.
    fn load(self) -> Result<Config, Failure> {
        let flags = [
            ("--listen", "server.listen", self.listen),
            ("--redis", "redis.url", self.redis),
            ("--data-dir", "embedded.data_dir", self.data_dir),
            ("--node-id", "server.node_id", self.node_id),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(name, key, value)| Some(Flag { name, key, value: value? }))
            .collect();
        Config::load(&Sources::of_process(self.config, flags)).map_err(Failure::usage)
    }
}

/// The exit codes, after sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Clean = 0,
    Usage = 64,
    Unavailable = 69,
    Internal = 70,
}

/// Why a command ends early: a code for scripts, and a message for people unless everything is said.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: Option<anyhow::Error>,
}

impl Failure {
    /// The configuration or the command is at fault.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, message: Some(error.into()) }
    }

    /// Something that is needed does not answer.
    pub(crate) fn unavailable(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Unavailable, message: Some(error.into()) }
    }

    /// Nobody outside is at fault.
    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Internal, message: Some(error.into()) }
    }

    /// Ends the process without a further word.
    fn silent(exit: Exit) -> Self {
        Self { exit, message: None }
    }

    /// Tells people on standard error, and scripts by the code.
    #[expect(clippy::print_stderr, reason = "the one place where the binary says why it fails")]
    pub(crate) fn report(self) -> ExitCode {
        match self.message.map(anyhow::Error::downcast::<clap::Error>) {
            // clap's own rendering knows colours, widths, and that help goes to standard output. A reader that
            // went away is no reason to fail.
            Some(Ok(error)) => drop(error.print()),
            Some(Err(message)) => eprintln!("headwater: {message:#}"),
            None => {}
        }
        ExitCode::from(self.exit as u8)
    }
}

/// Reads the command line. Help and version come back as a failure that is clean.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let cli = Cli::try_parse_from(arguments).map_err(|e| {
        let exit = if e.use_stderr() { Exit::Usage } else { Exit::Clean };
        Failure { exit, message: Some(e.into()) }
    })?;
    Ok(cli.command.unwrap_or(Command::Serve(cli.serve)))
}

/// The runtime that a command needs: the broker uses every core, a load leaves all but one to what it measures.
pub(crate) fn runtime(command: &Command) -> io::Result<Runtime> {
    let mut builder = match command {
        Command::Bench(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// Runs a command to its end.
pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(arguments) => serve::run(arguments.load()?).await,
        Command::Publish(arguments) => publish::run(arguments).await,
        Command::Tail(arguments) => tail::run(arguments).await,
        Command::Channels(arguments) => channels::run(arguments).await,
        Command::Token(arguments) => token::run(arguments),
        Command::Id(arguments) => id::run(&arguments),
        Command::Check(arguments) => check::run(&arguments.load()?),
        Command::Migrate(arguments) => migrate::run(arguments).await,
        Command::Adopt(arguments) => adopt::run(arguments).await,
        Command::Bench(arguments) => bench::run(*arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(arguments: &str) -> Result<Command, Failure> {
        parse(std::iter::once("headwater").chain(arguments.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        for arguments in ["", "serve"] {
            assert!(matches!(parsed(arguments), Ok(Command::Serve(_))));
        }
        for arguments in
            ["--listen 127.0.0.1:1 --config a --config b", "serve --listen 127.0.0.1:1 --config a --config b"]
        {
            let Ok(Command::Serve(flags)) = parsed(arguments) else { panic!("{arguments}") };
            assert_eq!((flags.listen.as_deref(), flags.config.len()), (Some("127.0.0.1:1"), 2));
        }
    }

    #[test]
    fn wrong_usage_exits_with_64_and_help_with_0() {
        for arguments in
            ["frobnicate", "tail", "publish", "--listen", "id", "tail a --count x", "publish --ndjson a b"]
        {
            assert_eq!(parsed(arguments).err().unwrap().exit, Exit::Usage, "{arguments}");
        }
        for arguments in ["--help", "--version", "help", "tail --help"] {
            assert_eq!(parsed(arguments).err().unwrap().exit, Exit::Clean, "{arguments}");
        }
    }

    #[test]
    fn a_wrong_flag_is_a_usage_failure_that_names_it() {
        let Ok(Command::Check(arguments)) = parsed("check --listen nonsense") else { panic!() };
        let failure = arguments.load().unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let message = format!("{:#}", failure.message.unwrap());
        assert!(message.starts_with("flag --listen: server.listen: \"nonsense\""), "{message}");
    }
}

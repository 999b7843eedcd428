//! `headwater adopt`: has the broker publish entries anew that somebody wrote with a plain XADD.

use std::io;

use clap::Args;
use serde::Deserialize;

use super::client::{self, Broker, ClientArgs};
use super::{Failure, output};

/// Publish entries anew that another program wrote with a plain XADD, and remove the originals.
#[derive(Args)]
pub(crate) struct AdoptArgs {
    /// Channel to look through
    channel: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Deserialize)]
struct Answer {
    adopted: u64,
}

/// Prints how many entries were adopted. There is no time limit: a long channel takes its time.
pub(super) async fn run(arguments: AdoptArgs) -> Result<(), Failure> {
    let broker = Broker::new(&arguments.client)?;
    let channel = client::channel(&arguments.channel)?;
    let call = broker.http.post(broker.url(&["channels", channel.as_str(), "adopt"]));
    let response = client::accepted(call.send().await.map_err(|e| broker.unreachable(e))?).await?;
    let answer: Answer = response.json().await.map_err(Failure::internal)?;
    output::line(&mut io::stdout(), &format!("adopted {}", answer.adopted))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ScriptedBroker, json, soon};
    use super::*;

    #[tokio::test]
    async fn the_channel_is_named_in_the_path() {
        let mut broker = ScriptedBroker::start(vec![json("200 OK", r#"{"adopted":3}"#)]).await;
        soon(run(AdoptArgs { channel: "a/b".into(), client: broker.client() })).await.unwrap();
        let request = broker.request().await;
        assert!(request.starts_with("POST /channels/a%2Fb/adopt HTTP/1.1\r\n"), "{request}");
    }
}

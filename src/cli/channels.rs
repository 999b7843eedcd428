//! `headwater channels`: lists the channels that hold events, as a table or as JSON lines.

use std::io::{self, Write};

use anyhow::anyhow;
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::{self, Broker, CALL_TIMEOUT, ClientArgs};
use super::{Failure, output};

/// Names asked for at once.
const PAGE: &str = "500";

/// Titles of the table and the fields that they show.
const COLUMNS: [(&str, &str); 5] = [
    ("CHANNEL", "channel"),
    ("LENGTH", "length"),
    ("SUBSCRIBERS", "subscribers"),
    ("LAST ACTIVITY", "last_activity"),
    ("LAST ID", "last_id"),
];

/// List the channels that hold events.
#[derive(Args)]
pub(crate) struct ChannelsArgs {
    /// Only channels whose name starts so
    #[arg(long, default_value = "")]
    prefix: String,
    /// One JSON object a line, with everything the broker tells
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Deserialize)]
struct Page {
    channels: Vec<Map<String, Value>>,
    next: Option<String>,
}

/// Prints all channels.
pub(super) async fn run(arguments: ChannelsArgs) -> Result<(), Failure> {
    list(&arguments, &mut io::stdout()).await
}

async fn list(arguments: &ChannelsArgs, out: &mut impl Write) -> Result<(), Failure> {
    let broker = Broker::new(&arguments.client)?;
    let mut rows = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = page(&broker, &arguments.prefix, cursor.as_deref()).await?;
        if arguments.json {
            for channel in &page.channels {
                output::line(out, &Value::from(channel.clone()).to_string())?;
            }
        } else {
            rows.extend(
                page.channels.iter().map(|channel| COLUMNS.map(|(_, field)| cell(channel.get(field)))),
            );
        }
        match page.next {
            None => break,
            next if next == cursor => {
                return Err(Failure::internal(anyhow!(
                    "the list does not go on: the broker repeats its cursor"
                )));
            }
            next => cursor = next,
        }
    }
    if arguments.json { Ok(()) } else { output::line(out, &table(rows)) }
}

async fn page(broker: &Broker, prefix: &str, cursor: Option<&str>) -> Result<Page, Failure> {
    let mut url = broker.url(&["channels"]);
    url.query_pairs_mut().append_pair("limit", PAGE);
    if !prefix.is_empty() {
        url.query_pairs_mut().append_pair("prefix", prefix);
    }
    if let Some(cursor) = cursor {
        url.query_pairs_mut().append_pair("cursor", cursor);
    }
    let call = broker.http.get(url).timeout(CALL_TIMEOUT);
    let response = client::accepted(call.send().await.map_err(|e| broker.unreachable(e))?).await?;
    response.json().await.map_err(Failure::internal)
}

/// A field as people read it. Subscribers come as a number, or as an object with their `total`.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => output::printable(text),
        Some(Value::Object(fields)) => cell(fields.get("total")),
        Some(value) => value.to_string(),
    }
}

fn table(mut rows: Vec<[String; COLUMNS.len()]>) -> String {
    rows.sort();
    rows.insert(0, COLUMNS.map(|(title, _)| title.to_owned()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, ScriptedBroker, json, soon};
    use super::*;

    fn pages() -> Vec<Answer> {
        let first = r#"{"channels":[{"channel":"b","length":12,"subscribers":{"total":3},"last_id":"01J"}],"next":"c 1"}"#;
        let second = r#"{"channels":[{"channel":"a/é","length":1,"subscribers":0,"last_activity":"2025-01-01T00:00:00Z"}],"next":null}"#;
        vec![json("200 OK", first), json("200 OK", second)]
    }

    async fn listed(broker: &ScriptedBroker, json: bool, prefix: &str) -> String {
        let arguments = ChannelsArgs { prefix: prefix.to_owned(), json, client: broker.client() };
        let mut out = Vec::new();
        soon(list(&arguments, &mut out)).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn all_pages_become_one_sorted_table() {
        let mut broker = ScriptedBroker::start(pages()).await;
        let table = "CHANNEL  LENGTH  SUBSCRIBERS  LAST ACTIVITY         LAST ID\n\
                     a/é      1       0            2025-01-01T00:00:00Z  -\n\
                     b        12      3            -                     01J\n";
        assert_eq!(listed(&broker, false, "x&y").await, table);
        assert!(broker.request().await.starts_with("GET /channels?limit=500&prefix=x%26y HTTP"));
        assert!(broker.request().await.starts_with("GET /channels?limit=500&prefix=x%26y&cursor=c+1 HTTP"));
    }

    #[tokio::test]
    async fn json_gives_everything_one_object_a_line() {
        let broker = ScriptedBroker::start(pages()).await;
        let text = listed(&broker, true, "").await;
        let names: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (names.len(), &names[0]["subscribers"]["total"], &names[1]["channel"]),
            (2, &3.into(), &"a/é".into())
        );
    }

    #[tokio::test]
    async fn a_cursor_that_does_not_move_ends_the_list() {
        let stuck = || json("200 OK", r#"{"channels":[],"next":"x"}"#);
        let broker = ScriptedBroker::start(vec![stuck(), stuck()]).await;
        let arguments = ChannelsArgs { prefix: String::new(), json: true, client: broker.client() };
        assert!(soon(list(&arguments, &mut Vec::new())).await.is_err());
    }
}

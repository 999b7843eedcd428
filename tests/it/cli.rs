//! The command line as a script uses it: what goes in, what comes out, and the exit code.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::broker::command;
use crate::support::redis::free_port;
use crate::support::{Broker, Store, Subscribe, within};

/// Runs the binary to its end with this on standard input.
async fn run_at(url: &str, args: &[&str], input: &str) -> Output {
    let mut command = Command::from(command(args));
    command.env("HEADWATER_URL", url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A command that does not read its input may have ended before it is written.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    within("the command ends", child.wait_with_output()).await.expect("the binary can be waited for")
}

/// Runs a command against this broker.
async fn run(broker: &Broker, args: &[&str], input: &str) -> Output {
    run_at(&broker.url(), args, input).await
}

/// What it printed, after it ended well.
fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("it prints text")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Seen to fail with a key and with a type that are not sent.
async fn an_event_is_published_from_an_argument_or_standard_input(store: Store) {
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    let output = run(&broker, &["publish", "orders", r#"{"a":1}"#, "--type", "tick"], "").await;
    let event = reader.events(1).await.remove(0);
    assert_eq!((event.kind.as_str(), event.data.as_str()), ("tick", r#"{"a":1}"#));
    assert!(printed(&output).contains(&event.last_event_id), "it prints the id: {output:?}");
    printed(&run(&broker, &["publish", "orders"], "from standard input").await);
    assert_eq!(reader.one().await.trim_end(), "from standard input");

    let keyed = ["publish", "orders", "once", "--idempotency-key", "k"];
    printed(&run(&broker, &keyed, "").await);
    printed(&run(&broker, &keyed, "").await);
    broker.http.publish("orders", "fence").await;
    assert_eq!(reader.data(2).await, ["once", "fence"]);
    let refused = run(&broker, &["publish", "a b", "x"], "").await;
    assert_ne!(refused.status.code(), Some(0));
    assert!(said(&refused).contains("a b"), "it says what is wrong: {refused:?}");
}

/// Seen to fail with a batch that is published backwards.
async fn many_events_are_published_as_lines(store: Store) {
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    let lines: String =
        (0..50).map(|n| json!({ "channel": "orders", "data": n }).to_string() + "\n").collect();
    printed(&run(&broker, &["publish", "orders", "--ndjson"], &lines).await);
    let expected: Vec<String> = (0..50).map(|n: i32| n.to_string()).collect();
    assert_eq!(reader.data(50).await, expected);
}

/// Seen to fail with a count, with a filter and with an exit code that are not kept.
async fn tail_prints_events_and_ends_when_it_has_enough_or_waited_enough(store: Store) {
    let broker = Broker::start(store).await;
    for data in ["zero", "one", "two"] {
        broker.http.publish("orders", data).await;
    }
    let output = run(&broker, &["tail", "orders", "--from", "earliest", "--count", "2"], "").await;
    let printed = printed(&output);
    assert!(printed.contains("zero") && printed.contains("one") && !printed.contains("two"), "{printed}");
    let waited = run(&broker, &["tail", "orders", "--count", "1", "--timeout", "300ms"], "").await;
    assert_eq!(waited.status.code(), Some(69), "{waited:?}");
    broker.http.publish("orders", json!({ "region": "us", "n": "other" })).await;
    broker.http.publish("orders", json!({ "region": "eu", "n": "wanted" })).await;
    let filter = ["tail", "orders", "--from", "earliest", "--filter", r#"{"region":"eu"}"#, "--count", "4"];
    let filtered = String::from_utf8(run(&broker, &filter, "").await.stdout).unwrap();
    assert!(filtered.contains("wanted") && !filtered.contains("other"), "{filtered}");
}

/// Seen to fail with a table for both.
async fn channels_are_a_table_and_json_for_scripts(store: Store) {
    let broker = Broker::start(store).await;
    broker.http.publish("orders", 1).await;
    let json = printed(&run(&broker, &["channels", "--json"], "").await);
    let _: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json}"));
    assert!(json.contains("orders"), "{json}");
    assert!(printed(&run(&broker, &["channels"], "").await).contains("orders"));
}

both_stores!(
    an_event_is_published_from_an_argument_or_standard_input,
    many_events_are_published_as_lines,
    tail_prints_events_and_ends_when_it_has_enough_or_waited_enough,
    channels_are_a_table_and_json_for_scripts,
);

/// Seen to fail with another id in the answer, and with another exit code.
#[tokio::test]
async fn an_id_is_translated_either_way() {
    let ulid = printed(&run_at("", &["id", "1526919030474-55"], "").await);
    let id = ulid.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| word.len() == 26);
    let id = id.unwrap_or_else(|| panic!("a ULID in {ulid}"));
    assert!(printed(&run_at("", &["id", id], "").await).contains("1526919030474-55"));
    assert_eq!(run_at("", &["id", "neither"], "").await.status.code(), Some(64));
}

/// Seen to fail with a URL that is shown as it is, and with one exit code for everything.
#[tokio::test]
async fn a_configuration_is_checked_and_shown_without_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = "a-secret-that-nobody-may-see-0123456789";
    let url = format!("redis://app:{secret}@127.0.0.1:6379");
    let good = file("good.toml", &format!("[sse]\nretry = \"7s\"\n[redis]\nurl = \"{url}\"\n"));
    let shown = printed(&run_at("", &["check", "--config", &good], "").await);
    assert!(shown.contains("retry") && shown.contains("7s"), "{shown}");
    assert!(!shown.contains(secret), "the secret is redacted");

    let bad = file("bad.toml", "[sse]\nretries = \"7s\"\n");
    let refused = run_at("", &["check", "--config", &bad], "").await;
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    let why = said(&refused);
    assert!(why.contains("retries") && why.contains("bad.toml"), "it names key and source: {why}");

    let mut by_environment = command(&["check"]);
    let refused = by_environment.env("HEADWATER_SSE__RETRIES", "7s").output().unwrap();
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(said(&refused).to_lowercase().contains("retries"), "{refused:?}");
    let ignored = command(&["check"]).env("HEADWATER_PORT", "tcp://10.0.0.1:80").output().unwrap();
    assert_eq!(
        ignored.status.code(),
        Some(0),
        "names without a double underscore are no configuration: {ignored:?}"
    );
}

/// Seen to fail with one exit code for everything.
#[tokio::test]
async fn usage_errors_and_absent_services_have_exit_codes_of_their_own() {
    let gone = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(run_at(&gone, &["publish", "a", "x"], "").await.status.code(), Some(69));
    assert_eq!(run_at(&gone, &["channels"], "").await.status.code(), Some(69));
    assert_eq!(run_at(&gone, &["no-such-command"], "").await.status.code(), Some(64));
    assert_eq!(run_at(&gone, &["publish"], "").await.status.code(), Some(64));
    assert_eq!(run_at(&gone, &["--help"], "").await.status.code(), Some(0));
    assert_eq!(run_at(&gone, &["--version"], "").await.status.code(), Some(0));
    let open = run_at(&gone, &["serve", "--listen", "0.0.0.0:0"], "").await;
    assert_eq!(open.status.code(), Some(64), "{open:?}");
    assert!(said(&open).contains("auth.open"), "it names the setting: {open:?}");
}

/// Seen to fail with an error that does not name the directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_cannot_share_a_data_directory() {
    let broker = Broker::start(Store::Embedded).await;
    let data_dir = broker.data_dir().to_str().expect("a temporary directory's name is text").to_owned();
    let second = run(&broker, &["serve", "--listen", "127.0.0.1:0", "--data-dir", &data_dir], "").await;
    assert!(matches!(second.status.code(), Some(64 | 69)), "{second:?}");
    assert!(said(&second).contains(&data_dir), "it names the directory: {second:?}");
}

/// Seen to fail with an error that is said twice, and with one exit code for everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_broker_from_starting_is_said_once_and_named() {
    let broker = Broker::start(Store::Embedded).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let (free, file) = (dir.path().join("free"), file.to_str().unwrap());
    let address = broker.addr.to_string();
    let taken = ["serve", "--listen", &address, "--data-dir", free.to_str().unwrap()];
    let no_dir = ["serve", "--listen", "127.0.0.1:0", "--data-dir", file];
    for (args, code, named, why) in
        [(taken, 64, address.as_str(), "Address already in use"), (no_dir, 69, file, "File exists")]
    {
        let refused = run(&broker, &args, "").await;
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        let said = said(&refused);
        assert!(said.contains(named), "{said}");
        assert_eq!(said.matches(why).count(), 1, "{said}");
    }
}

/// Seen to fail when adopting leaves the originals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_program_added_is_adopted_from_the_command_line() {
    let broker = Broker::start(Store::Redis).await;
    broker.redis().command(&["XADD", "hw:{0}:ch:a/b", "*", "data", "foreign"]).await;
    assert_eq!(printed(&run(&broker, &["adopt", "a/b"], "").await).trim(), "adopted 1");
    assert_eq!(printed(&run(&broker, &["adopt", "a/b"], "").await).trim(), "adopted 0");
    assert_eq!(broker.http.history("a/b").await.len(), 1);
    assert_eq!(run(&broker, &["adopt", "a,b"], "").await.status.code(), Some(64));
}

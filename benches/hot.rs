//! The hot functions of a node: encoding an event, reading ids and cursors, looking into a ring, stepping a session,
//! judging a filter. `cargo bench --bench hot` measures all of them, a word behind `--` selects; with `HOT_TABLE=1` in the
//! environment it prints the table of `docs/performance.md` at the end.
//!
//! Each is called as the broker calls it, over its public interface; what a figure is worth next to the kernel's own
//! work, `headwater bench` tells.

#[path = "hot/node.rs"]
mod node;
#[path = "hot/table.rs"]
mod table;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use headwater::channel::Channel;
use headwater::cursor::Cursor;
use headwater::event::{Data, Draft, Event, EventType, Format, SkipList};
use headwater::fanout::Filters;
use headwater::fanout::frame::Frame;
use headwater::id::{EventId, Partition, StreamId};
use headwater::sse::{encode_envelope, encode_event};
use node::Node;

const ZERO: Partition = Partition(0);
/// Sessions that one event goes to, so that what a step costs is more than what a clock does.
const SESSIONS: usize = 100;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    encoding(&mut criterion);
    ids_and_cursors(&mut criterion);
    filters(&mut criterion);
    rings(&mut criterion);
    sessions(&mut criterion);
    criterion.final_summary();
    if std::env::var_os("HOT_TABLE").is_some() {
        table::print();
    }
}

/// JSON of 200 bytes.
fn json() -> String {
    let head = r#"{"id":"ci40801234","net":"ci","mag":1.27,"place":"7 km N of The Geysers, CA","text":""#;
    format!("{head}{}\"}}", "x".repeat(200 - head.len() - 2))
}

fn event(data: Data) -> Event {
    let id = StreamId::new(1_795_346_312_082, 3).expect("a time of this century");
    Event { id, draft: Draft { kind: EventType::default(), data, retry: None, skip: SkipList::default() } }
}

fn json_event() -> Event {
    event(Data::stored(Format::Json, Bytes::from(json())))
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let channel = Channel::parse("quakes.ci").expect("a channel");
    let (one_line, many_lines) = (json_event(), event(Data::text("a line of text\n".repeat(13))));
    group.bench_function("plain, 200 bytes", |b| b.iter(|| encode_event(black_box(&one_line), ZERO)));
    group.bench_function("plain, 13 lines", |b| b.iter(|| encode_event(black_box(&many_lines), ZERO)));
    group.bench_function("envelope, 200 bytes", |b| {
        b.iter(|| encode_envelope(black_box(&one_line), ZERO, &channel));
    });
    group.bench_function("frame, 200 bytes", |b| {
        b.iter_batched(json_event, |event| Frame::new(event, ZERO), BatchSize::SmallInput);
    });
    group.finish();
}

fn ids_and_cursors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ids");
    let at = |partition| json_event().id.at(Partition(partition));
    let (id, stream_id) = (at(0).to_string(), json_event().id.to_string());
    let positions = (0..8).map(|p| (Partition(p), json_event().id));
    let eight = Cursor::new(positions, Partition(3));
    let eight_text = eight.to_string();
    group.bench_function("id from text", |b| b.iter(|| black_box(id.as_str()).parse::<EventId>()));
    group.bench_function("id to text", |b| b.iter(|| black_box(at(0)).to_string()));
    group
        .bench_function("ms-seq from text", |b| b.iter(|| black_box(stream_id.as_str()).parse::<StreamId>()));
    group.bench_function("cursor of one partition", |b| b.iter(|| Cursor::parse(black_box(&id), 1)));
    group.bench_function("cursor of 8 partitions", |b| b.iter(|| Cursor::parse(black_box(&eight_text), 8)));
    group.bench_function("cursor of 8 partitions to text", |b| b.iter(|| black_box(&eight).to_string()));
    group.finish();
}

fn filters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("filter");
    let filters = Filters::default();
    let compile = |json| filters.compile(json).expect("a filter").expect("one that excludes something");
    let (one, several) = (compile(r#"{"net":"ci"}"#), compile(r#"{"net":["us","ak","nc"],"mag":1}"#));
    let (data, text) = (json_event().draft.data, Data::text(json()));
    group.bench_function("passes", |b| b.iter(|| one.matches(black_box(&data))));
    group.bench_function("is refused", |b| b.iter(|| several.matches(black_box(&data))));
    group.bench_function("is no JSON", |b| b.iter(|| one.matches(black_box(&text))));
    let frame = Frame::new(json_event(), ZERO);
    group.bench_function("was judged before", |b| b.iter(|| frame.passes(black_box(&one))));
    group.finish();
}

fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let mut node = Node::new();
    let topic = node.join("a");
    node.release("a", 1024, &json_event().draft);
    let marks = node.marks();
    for (name, back) in [("nothing new", 0), ("one new frame", 1), ("64 new frames", 64)] {
        let position = node.before_last(back);
        group.bench_function(name, |b| b.iter(|| topic.look(black_box(position), &marks, 64)));
    }
    group.bench_function("left behind", |b| b.iter(|| topic.look(StreamId::ZERO, &marks, 64)));
    group.finish();
}

fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    group.throughput(Throughput::Elements(SESSIONS as u64));
    let draft = json_event().draft;
    for (name, channels, events, filter) in [
        ("nothing new", 1, 0, None),
        ("one event", 1, 1, None),
        ("one event, filtered out", 1, 1, Some(r#"{"net":"us"}"#)),
        ("64 events", 1, 64, None),
        ("one event, 16 channels", 16, 1, None),
    ] {
        let mut node = Node::new();
        let names: Vec<String> = (0..channels).map(|number| format!("channel-{number}")).collect();
        let mut sessions: Vec<_> = (0..SESSIONS).map(|_| node.subscribe(&names, filter)).collect();
        group.bench_function(name, |b| {
            b.iter_batched(
                || node.release("channel-0", events, &draft),
                |()| sessions.iter_mut().map(node::Client::drain).sum::<usize>(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

"""sseclient-py over urllib3. It parses and nothing else: reconnecting and resuming are this program's.

Driven by tests/it over the standard streams: a URL comes in, every event goes out as {"id", "event", "data"}.
With the argument `careless` the library gets the response as its documentation shows, with what that costs.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator

import urllib3
from sseclient import Event, SSEClient

CARELESS = "careless" in sys.argv[1:]

# A quiet stream shows a sign of life every 30 s (`sse.heartbeat_interval`).
TIMEOUT = urllib3.Timeout(connect=10, read=75)

# What may be better next time: too many requests, and a proxy that does not reach the broker.
TEMPORARY = (429, 502, 503, 504)


def pieces(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives. Iterating over the response itself may wait until 64 KiB have come."""
    while piece := response.read1(65_536):
        yield piece


def whole_events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Drops what is no complete event when the stream ends. The broker ends lines with LF only."""
    begun = b""
    for piece in pieces:
        complete, blank_line, begun = (begun + piece).rpartition(b"\n\n")
        yield complete + blank_line


def receive(http: urllib3.PoolManager, url: str) -> Iterator[tuple[str, Event]]:
    """Events and the position after each, over as many connections as it takes."""
    last_event_id = ""
    delay = 1.0  # until the broker says otherwise with `retry:`
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            response = http.request("GET", url, headers=headers, timeout=TIMEOUT, retries=False, preload_content=False)
            if response.status == 200:
                source = response if CARELESS else whole_events(pieces(response))
                for event in SSEClient(source).events():
                    last_event_id = event.id or last_event_id
                    delay = delay if event.retry is None else int(event.retry) / 1000
                    yield last_event_id, event
            elif response.status not in TEMPORARY:
                raise SystemExit(f"refused with {response.status}: {response.data.decode()}")
        except urllib3.exceptions.HTTPError:
            pass  # The connection could not be made, or broke.
        time.sleep(delay)


def main() -> None:
    url = sys.stdin.readline().strip()
    for position, event in receive(urllib3.PoolManager(), url):
        print(json.dumps({"id": position, "event": event.event, "data": event.data}), flush=True)


main()

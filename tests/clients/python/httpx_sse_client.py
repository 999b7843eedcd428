"""httpx-sse, reconnecting with stamina as its documentation shows, and with what docs/clients.md adds to that.

Driven by tests/it over the standard streams: a URL comes in, every event goes out as {"id", "event", "data"}.
With the argument `careless` the last id is kept as that documentation shows, and gets lost now and then.
"""

import json
import sys
from collections.abc import Iterator

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from stamina import retry

CARELESS = "careless" in sys.argv[1:]

# A quiet stream shows a sign of life every 30 s (`sse.heartbeat_interval`); httpx by itself gives up after 5 s.
TIMEOUT = httpx.Timeout(10, read=75)

# What may be better next time: too many requests, and a proxy that does not reach the broker.
TEMPORARY = (429, 502, 503, 504)


class StreamEnded(Exception):
    """The stream ended, or did not begin for a reason that passes."""


def receive(client: httpx.Client, url: str) -> Iterator[tuple[str, ServerSentEvent]]:
    """Events and the position after each, over as many connections as it takes."""
    last_event_id = ""
    delay = 1.0  # until the broker says otherwise with `retry:`

    def wait_before_retry(error: Exception) -> float | bool:
        # A connection that breaks is a ReadError or a RemoteProtocolError, one that is refused a ConnectError.
        return delay if isinstance(error, (httpx.TransportError, StreamEnded)) else False

    @retry(on=wait_before_retry, attempts=None, timeout=None)
    def connections() -> Iterator[tuple[str, ServerSentEvent]]:
        nonlocal last_event_id, delay
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        with connect_sse(client, "GET", url, headers=headers) as source:
            if source.response.status_code in TEMPORARY:
                raise StreamEnded
            source.response.raise_for_status()
            for event in source.iter_sse():
                # A block that holds a comment arrives as an event with the id of the one before.
                if not CARELESS and not event.data and event.id == last_event_id:
                    continue
                # Each connection begins with an empty id: one that has not seen an id yet must not forget ours.
                last_event_id = event.id if CARELESS else event.id or last_event_id
                delay = delay if event.retry is None else event.retry / 1000
                yield last_event_id, event
        raise StreamEnded

    return connections()


def main() -> None:
    url = sys.stdin.readline().strip()
    with httpx.Client(timeout=TIMEOUT, trust_env=False) as client:
        for position, event in receive(client, url):
            print(json.dumps({"id": position, "event": event.event, "data": event.data}), flush=True)


main()

// The npm package `eventsource`, in the major version that is given: it reconnects and resumes by itself.
//
// Driven by tests/it over the standard streams: a URL comes in, every event goes out as `{id, event, data}` with
// notes when the connection opens or fails. The end of standard input ends the program.

import { createInterface } from 'node:readline';

const [version] = process.argv.slice(2);
const module = await import(version ? `eventsource-${version}` : 'eventsource');
// Version 2 exports the class itself.
const EventSource = module.EventSource ?? module.default;

const report = (document) => process.stdout.write(`${JSON.stringify(document)}\n`);

for await (const url of createInterface({ input: process.stdin })) {
  const source = new EventSource(url);
  source.onopen = () => report({ note: 'open' });
  source.onerror = () => report({ note: 'error', state: source.readyState });
  for (const type of ['message', 'connected', 'gap', 'heartbeat', 'closing']) {
    source.addEventListener(type, ({ lastEventId, data }) => report({ id: lastEventId, event: type, data }));
  }
}
process.exit();

// A page in a real browser that subscribes and reports what it gets, with its own EventSource or, when
// `fetch-event-source` is given, with @microsoft/fetch-event-source.
//
// Driven by tests/it over the standard streams: first the page's origin goes out as `{"note": "origin", ...}`, then
// each line that comes in is a URL to subscribe to, and every event goes out as `{id, event, data}`, with notes when
// the connection opens or fails. The end of standard input closes the browser.

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const CONTROL_TYPES = ['connected', 'gap', 'heartbeat', 'closing'];
const LIBRARY = fileURLToPath(new URL('node_modules/@microsoft/fetch-event-source/lib/esm', import.meta.url));

const report = (document) => process.stdout.write(`${JSON.stringify(document)}\n`);

// The page, and the library's modules, which import each other without an ending.
const server = createServer(async (request, response) => {
  const module = request.url.match(/^\/fetch-event-source\/([a-z]+)$/)?.[1];
  const type = module ? 'text/javascript' : 'text/html';
  response.writeHead(200, { 'content-type': `${type}; charset=utf-8` });
  response.end(module ? await readFile(join(LIBRARY, `${module}.js`)) : '<!doctype html><title>A client</title>');
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const origin = `http://127.0.0.1:${server.address().port}`;

/** Runs in the page: the browser's own client needs nothing to come back and to resume. */
function withEventSource({ url, types }) {
  const source = new EventSource(url);
  source.onopen = () => window.report({ note: 'open' });
  source.onerror = () => window.report({ note: 'error', state: source.readyState });
  for (const type of ['message', ...types]) {
    source.addEventListener(type, ({ lastEventId, data }) => {
      window.report({ id: lastEventId, event: type, data });
    });
  }
}

/** Runs in the page: `careless` takes the library as it is, which loses what docs/clients.md says. */
async function withFetchEventSource({ url, careless }) {
  const { fetchEventSource } = await import('/fetch-event-source/index');
  let lastEventId = '';
  const options = {
    onmessage(message) {
      // A block that holds a comment arrives as a message; the broker names the type of every event.
      if (!careless && !message.event) return;
      lastEventId = message.id || lastEventId;
      window.report({ id: lastEventId, event: message.event || 'message', data: message.data });
    },
    // The server may end a stream at any time; without this the library takes that for the end of all.
    onclose() {
      throw new Error('the stream ended');
    },
    // Answering nothing means: again, after the `retry:` that the server sent.
    onerror() {
      window.report({ note: 'error' });
    },
  };
  if (!careless) {
    // The library moves its cursor at an `id:` line, before the event is complete. What was handled counts.
    options.fetch = (input, { headers: { 'last-event-id': _, ...headers }, ...init }) =>
      fetch(input, { ...init, headers: lastEventId ? { ...headers, 'last-event-id': lastEventId } : headers });
  }
  fetchEventSource(url, options);
}

const profile = await mkdtemp(join(tmpdir(), 'headwater-browser-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-proxy-server',
  ],
});
const page = context.pages()[0] ?? (await context.newPage());
await page.exposeFunction('report', report);
await page.goto(origin);
report({ note: 'origin', origin });

const [library, care] = process.argv.slice(2);
for await (const url of createInterface({ input: process.stdin })) {
  if (library === 'fetch-event-source') {
    await page.evaluate(withFetchEventSource, { url, careless: care === 'careless' });
  } else {
    await page.evaluate(withEventSource, { url, types: CONTROL_TYPES });
  }
}

await context.close();
server.close();
await rm(profile, { recursive: true, force: true });

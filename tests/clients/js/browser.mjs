// A page in a real browser that subscribes with its own EventSource and reports what it sees.
//
// Driven by tests/it/browser.rs over the standard streams, one JSON document a line: first the page's origin goes
// out, then `{"subscribe": url}` comes in, then every event of the stream goes out as `{kind, id, data}`. The end
// of standard input closes the browser.

import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const CONTROL_TYPES = ['connected', 'gap', 'heartbeat', 'closing'];

const report = (document) => process.stdout.write(`${JSON.stringify(document)}\n`);

const server = createServer((request, response) => {
  response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
  response.end('<!doctype html><title>A client</title>');
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const origin = `http://127.0.0.1:${server.address().port}`;

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
report({ origin });

for await (const line of createInterface({ input: process.stdin })) {
  await page.evaluate(
    ({ url, types }) => {
      const source = new EventSource(url);
      source.onopen = () => window.report({ kind: 'open' });
      source.onerror = () => window.report({ kind: 'error', state: source.readyState });
      for (const type of ['message', ...types]) {
        source.addEventListener(type, (event) => {
          window.report({ kind: type, id: event.lastEventId, data: event.data });
        });
      }
    },
    { url: JSON.parse(line).subscribe, types: CONTROL_TYPES },
  );
}

await context.close();
server.close();
await rm(profile, { recursive: true, force: true });

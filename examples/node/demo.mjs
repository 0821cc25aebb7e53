// Calls API_URL every INTERVAL_MS, from each of WORKERS loops, COUNT times or until it is told to stop, and prints one
// line for each call: the status, or what went wrong. With API_BODY it is a POST.
import { setTimeout as sleep } from 'node:timers/promises';

import { TokenSource } from './tokensource.mjs';

const { API_URL, API_BODY, INTERVAL_MS = 1000, WORKERS = 1, COUNT = 0, AUTOPAY_MOUNT, AUTOPAY_NAME } = process.env;
const source = new TokenSource({ mount: AUTOPAY_MOUNT, name: AUTOPAY_NAME });

let stopped = false;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { stopped = true; });

async function work() {
  for (let i = 0; (!+COUNT || i < COUNT) && !stopped; i++) {
    try {
      const response = await source.fetch(API_URL, API_BODY && { method: 'POST', body: API_BODY });
      await response.text();
      console.log(response.status);
    } catch (error) {
      console.log('error:', error.message);
    }
    await sleep(+INTERVAL_MS);
  }
}

await Promise.all(Array.from({ length: WORKERS }, work));

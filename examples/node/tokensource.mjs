// A client of the Autopay secrets engine for Node 18 or newer, without dependencies. Take this file over; demo.mjs
// shows it at work.
//
//   const source = new TokenSource();
//   const response = await source.fetch('https://api.autopay.io/...');

import { readFile } from 'node:fs/promises';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

const VAULT_TIMEOUT = 15_000; // ms for one request to Vault; above request_timeout, which a first read may take
const VAULT_ATTEMPTS = 3; // of one read, a second apart
const API_TIMEOUT = 30_000;
const PAUSE_FIRST = 1_000; // after a failed read, doubled with each further one
const PAUSE_MAX = 30_000;
const REFUSED_PAUSE = 10_000; // after the API refused a token and Vault had no other

// TokenSource holds a token for as long as Vault says, and reads it again when one is asked for after that. One read is
// under way at a time, and nobody waits for it while the token in hand lives. Times are of the monotonic clock.
export class TokenSource {
  #env;
  #readPath;
  #rotatePath;
  #held = ''; // never log it
  #until = 0; // when #held dies
  #nextRead = 0; // no read before that
  #failures = 0; // in a row
  #error; // of the last read
  #reading; // promise of the read under way
  #refusedUntil = 0; // until then a refusal by the API is taken as it is

  // Reads MOUNT/token, or MOUNT/token/NAME. Of env it takes VAULT_ADDR, VAULT_TOKEN_FILE (which is read for each
  // request to Vault, for Vault Agent renews the token in it) or VAULT_TOKEN, and VAULT_NAMESPACE. For a private CA
  // start node with NODE_EXTRA_CA_CERTS.
  constructor({ mount = 'autopay', name = '', env = process.env } = {}) {
    this.#env = env;
    this.#readPath = `${mount}/token${name && `/${name}`}`;
    this.#rotatePath = `${mount}/rotate${name && `/${name}`}`;
  }

  // Resolves to a live token. It waits for Vault only when there is none in hand.
  async token() {
    const now = performance.now();
    const reading = now < this.#nextRead ? undefined : this.#read();
    if (now < this.#until) return this.#held;
    if (reading) return reading;
    throw this.#error;
  }

  // Resolves to the token to use instead of one that the API refused: the same one if Vault has no other.
  async replace(refused) {
    if (this.#held !== refused || performance.now() < this.#refusedUntil) return this.#held;
    return this.#read(refused);
  }

  // fetch with the token. An answer 401 is given one more try, if Vault has another token.
  async fetch(url, options = {}) {
    const send = (token) => {
      const headers = new Headers(options.headers);
      headers.set('Authorization', `Bearer ${token}`);
      return fetch(url, { signal: AbortSignal.timeout(API_TIMEOUT), ...options, headers });
    };
    const used = await this.token();
    const response = await send(used);
    const repeatable = !(options.body instanceof ReadableStream);
    if (response.status !== 401 || !repeatable) return response;
    const other = await this.replace(used).catch(() => used);
    if (other === used) return response;
    await response.body?.cancel();
    return send(other);
  }

  // Starts a read, or joins the one under way.
  #read(refused) {
    if (!this.#reading) {
      this.#reading = this.#fly(refused).finally(() => { this.#reading = undefined; });
      this.#reading.catch(() => {}); // perhaps nobody waits for it
    }
    return this.#reading;
  }

  async #fly(refused) {
    try {
      let got = await this.#ask();
      if (got.token === refused) {
        // A policy need not allow it, and an engine that has just obtained a token keeps it.
        const rotated = await this.#vault('POST', this.#rotatePath).then(() => true, () => false);
        if (rotated) got = await this.#ask();
      }
      this.#held = got.token;
      // Another second, and the engine has replaced the token that was due.
      this.#nextRead = got.at + (got.ttl + 1) * 1_000;
      // Where that is later than its end, this host's clock is wrong: the engine hands out live tokens only.
      this.#until = Math.max(got.until, this.#nextRead);
      this.#failures = 0;
      return this.#held;
    } catch (error) {
      this.#error = error;
      this.#nextRead = performance.now() + Math.min(PAUSE_FIRST * 2 ** this.#failures++, PAUSE_MAX);
      throw error;
    } finally {
      if (refused && this.#held === refused) this.#refusedUntil = performance.now() + REFUSED_PAUSE;
    }
  }

  async #ask() {
    const { data } = await this.#vault('GET', this.#readPath);
    const at = performance.now();
    const until = at + Date.parse(data?.expire_time) - Date.now();
    if (!data?.access_token || !Number.isInteger(data.ttl) || Number.isNaN(until)) {
      throw new Error(`${this.#readPath} in Vault holds no token of Autopay: check mount and name`);
    }
    return { token: data.access_token, ttl: data.ttl, at, until };
  }

  // Makes a request to Vault, repeated where it is answered 429 or 5xx, or not at all.
  async #vault(method, path) {
    for (let attempt = 1; ; attempt++) {
      let status, answer, problem;
      try {
        const response = await fetch(`${this.#env.VAULT_ADDR}/v1/${path}`, {
          method, headers: await this.#headers(), signal: AbortSignal.timeout(VAULT_TIMEOUT),
        });
        status = response.status;
        answer = await response.json().catch(() => ({})); // a proxy's error may be no JSON
        if (response.ok) return answer;
        problem = `Vault answered ${status}: ${(answer.errors ?? []).join('; ').replace(/\s+/g, ' ')}`;
      } catch (error) {
        if (error.syscall === 'open') throw new Error(`VAULT_TOKEN_FILE: ${error.message}`);
        problem = `Vault can't be reached: ${error.cause?.message || error.cause?.code || error.message}`;
      }
      if (status === 403) {
        problem += `: check that the token for Vault is valid and has a policy with read on ${this.#readPath}`;
      }
      const passing = status === undefined || status === 429 || status >= 500;
      if (!passing || attempt === VAULT_ATTEMPTS) throw new Error(`${method} ${path}: ${problem}`);
      await sleep(1_000);
    }
  }

  async #headers() {
    const { VAULT_TOKEN_FILE: file, VAULT_TOKEN: token = '', VAULT_NAMESPACE: namespace } = this.#env;
    return {
      'X-Vault-Request': 'true',
      'X-Vault-Token': file ? (await readFile(file, 'utf8')).trim() : token,
      ...(namespace && { 'X-Vault-Namespace': namespace }),
    };
  }
}

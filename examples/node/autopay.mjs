// fetch for the Autopay APIs, with the token that Vault holds. Node 18 or newer.
//
//   const autopayFetch = authorize();
//   const response = await autopayFetch('https://api.autopay.io/…');

import { readFile } from 'node:fs/promises';

// authorize returns a fetch that caches the token for ttl seconds, or until it expires if Vault can't be reached.
// rotatePath is autopay/rotate if the policy allows it.
export function authorize({ path = 'autopay/token', rotatePath } = {}) {
  let held; // the answer of the last good read
  let expires = 0;
  let error; // of the last read
  let reading; // promise of the read under way
  let nextRead = 0;
  let nextReplace = 0;
  const live = () => Date.now() < expires;

  async function read(refused) {
    try {
      let data = await vault('GET', path);
      // If the API refuses a token in its first tenth, it would most likely refuse the next one too.
      if (data.access_token === refused && rotatePath && data.ttl < 0.9 * data.rotation_period) {
        await vault('PUT', rotatePath);
        data = await vault('GET', path);
      }
      if (!data.access_token) throw new Error('another engine is there');
      held = data;
      // One second after ttl, the engine has replaced the token.
      nextRead = performance.now() + (held.ttl + 1) * 1000;
      // The maximum is for a wrong clock on this host: Vault only returns live tokens.
      expires = Math.max(Date.parse(held.expire_time), Date.now() + (held.ttl + 1) * 1000);
    } catch (cause) {
      error = new Error(`no token at ${path} in Vault: ${cause.cause?.message ?? cause.message}`, { cause });
      nextRead = performance.now() + 10_000;
    }
  }
  const readOnce = (refused) => reading ??= read(refused).finally(() => { reading = undefined; });

  async function replace(refused) {
    if (held.access_token === refused && (reading || performance.now() >= nextReplace)) {
      nextReplace = performance.now() + 10_000;
      await readOnce(refused);
    }
    return held.access_token !== refused && held.access_token;
  }

  return async function autopayFetch(url, options = {}) {
    const wasLive = live();
    if (performance.now() >= nextRead) {
      const done = readOnce(); // in the background, if there is a live token
      if (!wasLive) await done;
    }
    if (!wasLive && !live()) throw error;
    const send = (token) => {
      const headers = new Headers(options.headers);
      headers.set('Authorization', `Bearer ${token}`);
      return fetch(url, { ...options, headers });
    };
    const used = held.access_token;
    const response = await send(used);
    // After a 401, the request is repeated once if Vault has another token. A 403 is not about the token.
    if (response.status !== 401 || options.body instanceof ReadableStream) return response;
    const other = await replace(used);
    if (!other) return response;
    await response.body?.cancel();
    return send(other);
  };
}

async function vault(method, path) {
  const { VAULT_ADDR, VAULT_NAMESPACE = '', VAULT_TOKEN_FILE, VAULT_TOKEN } = process.env;
  const token = VAULT_TOKEN_FILE ? (await readFile(VAULT_TOKEN_FILE, 'utf8')).trim() : VAULT_TOKEN;
  const response = await fetch(`${VAULT_ADDR}/v1/${path}`, {
    method,
    headers: { 'X-Vault-Token': token, 'X-Vault-Request': 'true', 'X-Vault-Namespace': VAULT_NAMESPACE },
    signal: AbortSignal.timeout(30_000),
  });
  const { data, errors } = await response.json();
  if (!response.ok) throw new Error(`${response.status} ${errors?.join('; ')}`);
  return data;
}

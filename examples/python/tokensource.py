"""A client of the Autopay secrets engine, for Python 3.9 or newer, with the standard library alone.

Take this file over; demo.py shows it at work.

    source = TokenSource()
    with source.open(urllib.request.Request("https://api.autopay.io/...")) as response:
        ...
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from datetime import datetime

VAULT_TIMEOUT = 15  # seconds for one request to Vault; above request_timeout, which a first read may take
VAULT_ATTEMPTS = 3  # of one read, a second apart
API_TIMEOUT = 30
PAUSE_FIRST = 1  # after a failed read, doubled with each further one
PAUSE_MAX = 30
REFUSED_PAUSE = 10  # after the API refused a token and Vault had no other


class VaultError(Exception):
    """Why there is no token. It holds neither Vault's token nor Autopay's."""


class TokenSource:
    """Holds a token for as long as Vault says, and reads it again when one is asked for after that.

    One read is under way at a time, and nobody waits for it while the token in hand lives. It is safe for use by many
    threads. Make it after a fork, not before. Times are of the monotonic clock.
    """

    def __init__(self, mount="autopay", name="", env=os.environ):
        """Reads MOUNT/token, or MOUNT/token/NAME.

        Of env it takes VAULT_ADDR, VAULT_TOKEN_FILE (which is read for each request to Vault, for Vault Agent renews
        the token in it) or VAULT_TOKEN, and VAULT_NAMESPACE. For a private CA set SSL_CERT_FILE.
        """
        suffix = f"/{name}" if name else ""
        self._read_path = f"{mount}/token{suffix}"
        self._rotate_path = f"{mount}/rotate{suffix}"
        self._env = env
        self._lock = threading.Lock()  # guards what follows; not held during a request
        self._held = ""  # never log it
        self._until = 0.0  # when _held dies
        self._next_read = 0.0  # no read before that
        self._failures = 0  # in a row
        self._error = ""  # of the last read
        self._reading = None  # the future of the read under way
        self._refused_until = 0.0  # until then a refusal by the API is taken as it is

    def token(self):
        """Returns a live token. It waits for Vault only when there is none in hand."""
        with self._lock:
            now = time.monotonic()
            reading = None if now < self._next_read else self._read()
            if now < self._until:
                return self._held
            if reading is None:
                raise VaultError(self._error)
        return reading.result()

    def replace(self, refused):
        """Returns the token to use instead of one that the API refused: the same one if Vault has no other."""
        with self._lock:
            if self._held != refused or time.monotonic() < self._refused_until:
                return self._held
            reading = self._read(refused)
        return reading.result()

    def open(self, request, timeout=API_TIMEOUT):
        """urlopen with the token. An answer 401 is given one more try, if Vault has another token."""
        used = self.token()
        try:
            return self._send(request, used, timeout)
        except urllib.error.HTTPError as error:
            repeatable = request.data is None or isinstance(request.data, bytes)
            if error.code != 401 or not repeatable:
                raise
            try:
                other = self.replace(used)
            except VaultError:
                other = used
            if other == used:
                raise
            error.close()
        return self._send(request, other, timeout)

    @staticmethod
    def _send(request, token, timeout):
        # Unlike an ordinary header this one does not follow a redirect to another host.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
        return urllib.request.urlopen(request, timeout=timeout)

    def _read(self, refused=None):
        """Starts a read, or joins the one under way. The caller holds the lock."""
        if self._reading is None:
            reading = Future()
            threading.Thread(target=self._fly, args=(reading, refused), daemon=True).start()
            self._reading = reading
        return self._reading

    def _fly(self, reading, refused):
        error = ""
        try:
            token, ttl, until = self._ask()
            if token == refused and self._rotate():
                token, ttl, until = self._ask()
        except Exception as e:  # whatever it is, those who wait must hear of it
            error = str(e) if isinstance(e, VaultError) else f"read of {self._read_path}: {str(e) or repr(e)}"
        with self._lock:
            now = time.monotonic()
            if not error:
                self._held, self._failures = token, 0
                # Another second, and the engine has replaced the token that was due.
                self._next_read = now + ttl + 1
                # Where that is later than its end, this host's clock is wrong: the engine hands out live tokens only.
                self._until = max(until, self._next_read)
            else:
                self._next_read = now + min(PAUSE_FIRST * 2 ** min(self._failures, 10), PAUSE_MAX)
                self._failures += 1
            if refused is not None and self._held == refused:
                self._refused_until = now + REFUSED_PAUSE
            self._error, self._reading, held = error, None, self._held
        if error:
            reading.set_exception(VaultError(error))
        else:
            reading.set_result(held)

    def _ask(self):
        data = self._vault("GET", self._read_path).get("data") or {}
        try:
            expires = datetime.strptime(data["expire_time"], "%Y-%m-%dT%H:%M:%S%z")
            return data["access_token"], int(data["ttl"]), time.monotonic() + expires.timestamp() - time.time()
        except (KeyError, TypeError, ValueError):
            raise VaultError(f"{self._read_path} in Vault holds no token of Autopay: check mount and name") from None

    def _rotate(self):
        """Asks for a new token. A policy need not allow it, and an engine that has just obtained one keeps it."""
        try:
            self._vault("POST", self._rotate_path)
        except VaultError:
            return False
        return True

    def _vault(self, method, path):
        """Makes a request to Vault, repeated where it is answered 429 or 5xx, or not at all."""
        request = urllib.request.Request(f"{self._env['VAULT_ADDR']}/v1/{path}", method=method, headers=self._headers())
        for attempt in range(1, VAULT_ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=VAULT_TIMEOUT) as response:
                    return json.load(response)
            except urllib.error.HTTPError as e:
                passing = e.code == 429 or e.code >= 500
                problem = f"Vault answered {e.code}: {self._errors(e)}"
                if e.code == 403:
                    problem += ": check that the token for Vault is valid and has a policy with read on " + self._read_path
            except (OSError, ValueError, http.client.HTTPException) as e:  # ValueError: an answer that is not JSON
                passing, problem = True, f"Vault can't be reached: {getattr(e, 'reason', e)}"
            if not passing:
                break
            if attempt < VAULT_ATTEMPTS:
                time.sleep(1)
        raise VaultError(f"{method} {path}: {problem}")

    @staticmethod
    def _errors(answer):
        try:
            return " ".join("; ".join(json.load(answer)["errors"]).split())
        except (OSError, ValueError, KeyError, TypeError):  # a proxy's, perhaps
            return answer.reason

    def _headers(self):
        token = self._env.get("VAULT_TOKEN", "")
        if self._env.get("VAULT_TOKEN_FILE"):
            with open(self._env["VAULT_TOKEN_FILE"], encoding="ascii") as file:
                token = file.read().strip()
        headers = {"X-Vault-Request": "true", "X-Vault-Token": token}
        if self._env.get("VAULT_NAMESPACE"):
            headers["X-Vault-Namespace"] = self._env["VAULT_NAMESPACE"]
        return headers

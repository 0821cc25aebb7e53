"""Authorizes requests to the Autopay APIs with the token that Vault holds.

    session = requests.Session()
    session.auth = AutopayAuth(hvac.Client())
    session.get("https://api.autopay.io/...")
"""

import datetime
import threading
import time

import hvac
import requests


class AutopayAuth(requests.auth.AuthBase):
    """Caches the token for ttl seconds, or until it expires if Vault can't be reached. Safe for use by threads.

    vault is a client that is logged in. rotate_path is autopay/rotate, if the policy allows that.
    """

    def __init__(self, vault, path="autopay/token", rotate_path=None):
        self._vault, self._path, self._rotate_path = vault, path, rotate_path
        self._lock = threading.Lock()  # guards what follows, and is held during a read
        self._token, self._expires = "", 0
        self._next_read, self._next_replace = 0, 0
        self._error = ""

    def __call__(self, request):
        with self._lock:
            if time.monotonic() >= self._next_read:
                self._read()
            if time.time() >= self._expires:
                raise requests.RequestException(self._error)
            request.headers["Authorization"] = f"Bearer {self._token}"
        request.register_hook("response", self._retry)
        return request

    def _retry(self, response, **kwargs):
        """After a 401, repeats the request once if Vault has another token. A 403 is not about the token."""
        request = response.request.copy()
        refused = request.headers.get("Authorization")  # None after a redirect to another host
        if response.status_code != 401 or not refused or not isinstance(request.body, (bytes, str, type(None))):
            return response
        with self._lock:
            if refused == f"Bearer {self._token}" and time.monotonic() >= self._next_replace:
                self._next_replace = time.monotonic() + 10
                self._read(refused=self._token)
            request.headers["Authorization"] = f"Bearer {self._token}"
        if request.headers["Authorization"] == refused:
            return response
        response.close()
        return response.connection.send(request, **kwargs)

    def _read(self, refused=None):
        """Keeps the current token if it fails."""
        try:
            data = self._ask()
            # If the API refuses a token in its first tenth, it would most likely refuse the next one too.
            if data["access_token"] == refused and self._rotate_path and data["ttl"] < 0.9 * data["rotation_period"]:
                self._vault.write(self._rotate_path)
                data = self._ask()
            expires = datetime.datetime.strptime(data["expire_time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
            # The maximum is for a wrong clock on this host: Vault only returns live tokens.
            self._expires = max(expires, time.time() + data["ttl"] + 1)
            self._token = data["access_token"]
            # One second after ttl, the engine has replaced the token.
            self._next_read = time.monotonic() + data["ttl"] + 1
        except Exception as error:
            self._error = f"no token at {self._path} in Vault: {error}"
            self._next_read = time.monotonic() + 10

    def _ask(self):
        # With a live token the engine answers from memory. Otherwise it may have to request one from Autopay.
        timeout = 2 if time.time() < self._expires else 30
        return self._vault.adapter.get(f"/v1/{self._path}", timeout=timeout)["data"]

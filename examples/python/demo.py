"""Calls API_URL every INTERVAL_MS, from each of WORKERS threads, COUNT times or until it is told to stop, and prints
one line for each call: the status, or what went wrong. With API_BODY it is a POST.
"""

import os
import signal
import threading
import urllib.error
import urllib.request

from tokensource import TokenSource, VaultError


def work(source, stopped):
    interval = int(os.environ.get("INTERVAL_MS", 1000)) / 1000
    left = int(os.environ.get("COUNT", 0)) or float("inf")
    while left > 0 and not stopped.is_set():
        try:
            request = urllib.request.Request(os.environ["API_URL"], os.environ.get("API_BODY", "").encode() or None)
            with source.open(request) as response:
                response.read()
                line = response.status
        except urllib.error.HTTPError as e:
            line = e.code
            e.close()
        except (VaultError, OSError) as e:
            line = f"error: {e}"
        print(f"{line}\n", end="", flush=True)  # one write: lines of two threads do not mix
        left -= 1
        stopped.wait(interval)


def main():
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    source = TokenSource(os.environ.get("AUTOPAY_MOUNT", "autopay"), os.environ.get("AUTOPAY_NAME", ""))
    workers = [threading.Thread(target=work, args=(source, stopped)) for _ in range(int(os.environ.get("WORKERS", 1)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()

"""Posts each line of its input to API_URL, and prints the status or what went wrong."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hvac
import requests

from autopay import AutopayAuth


def agent_token(request):
    """Takes the token for Vault from the sink of a Vault Agent, which renews it."""
    request.headers["X-Vault-Token"] = Path(os.environ["VAULT_TOKEN_FILE"]).read_text().strip()
    return request


def post(line):
    try:
        status = api.post(os.environ["API_URL"], data=line.rstrip("\n"), timeout=30).status_code
    except requests.RequestException as error:
        status = " ".join(str(error).split())
    print(f"{status}\n", end="", flush=True)


vault = hvac.Client(session=requests.Session())
if "VAULT_TOKEN_FILE" in os.environ:
    vault.session.auth = agent_token
api = requests.Session()
api.auth = AutopayAuth(vault, os.environ["AUTOPAY_PATH"], os.environ.get("AUTOPAY_ROTATE_PATH"))

with ThreadPoolExecutor() as threads:
    for line in sys.stdin:
        threads.submit(post, line)

#!/usr/bin/env bash
# Runs the acceptance tests: the plugin in bin/, in real Vault servers on loopback.
#
#   scripts/acceptance.sh             every suite but kubernetes
#   scripts/acceptance.sh storms      one of the suites in acceptance/: consumers, storms, engine, release, harness, bench
#   scripts/acceptance.sh kubernetes  the Kubernetes examples with a real API server
#   scripts/acceptance.sh examples    the tests that run a file of examples/
#   scripts/acceptance.sh formats     the formats of the Kubernetes and Prometheus examples, without a server
#
# VAULT_BIN=/path/to/vault chooses the server; without it scripts/vault.sh builds one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

suites=(consumers storms engine release harness bench kubernetes)
what=${1:-all}
case " all examples formats ${suites[*]} " in
  *" $what "*) ;;
  *)
    echo "acceptance: there is no suite $what; there are ${suites[*]}, and examples and formats" >&2
    exit 2
    ;;
esac

# say_missing names the tools whose tests will be skipped, because go test shows nothing of a skipped test.
say_missing() {
  local tool
  for tool in node javac curl jq nginx ansible-playbook; do
    type -P "$tool" >/dev/null || echo "acceptance: $tool is not installed, so its example will NOT RUN (on Debian: apt-get install nodejs default-jdk-headless curl jq nginx-light ansible)" >&2
  done
  python3 -c 'import hvac, requests' 2>/dev/null || /usr/bin/python3 -c 'import hvac, requests' 2>/dev/null ||
    echo "acceptance: Python's hvac is not installed, so its example will NOT RUN (on Debian: apt-get install python3-hvac python3-requests)" >&2
  type -P terraform >/dev/null || echo "acceptance: terraform is not installed, so its examples will NOT RUN, only the API calls that it makes" >&2
}

suite() {
  go test -tags acceptance -count=1 -timeout 30m -v "$@" >>"$log" 2>&1
}

# formats checks the examples for Kubernetes and Prometheus. These tests are modules of their own, because their
# dependencies must not mix with ours.
formats() {
  echo "acceptance: formats of the Kubernetes and Prometheus examples (the first build takes a few minutes)"
  go -C acceptance/consumers/manifests test -count=1 ./...
  go -C acceptance/consumers/prometheus test -count=1 ./...
}

if [ "$what" = formats ]; then
  formats
  exit
fi

export PLUGIN_BIN=$PWD/bin/vault-plugin-secrets-autopay
[ -x "$PLUGIN_BIN" ] || {
  echo "acceptance: $PLUGIN_BIN is missing; run 'make build' first" >&2
  exit 1
}
log=$PWD/bin/acceptance.log
: >"$log"

# The tests mostly wait, so four run at a time, more than there are processors. Two packages with two tests each keep all
# four busy to the end; with one package at a time, three would idle while the last long test of each finishes. The longest
# packages come first. The bench suite measures latency and comes last, alone on the machine.
run() {
  case $what in
    all)
      suite -p 2 -parallel 2 ./acceptance/{consumers,storms,engine,release,harness} && suite ./acceptance/bench
      ;;
    examples) suite -parallel 4 -run '^TestExample' ./acceptance/consumers ;;
    *) suite -parallel 4 "./acceptance/$what" ;;
  esac
}

echo "acceptance: $what, in real Vault servers on loopback"
case $what in all | consumers | examples) say_missing ;; esac
VAULT_BIN=$(scripts/vault.sh)
export VAULT_BIN
if [ "$what" = kubernetes ]; then
  echo "acceptance: etcd, kube-apiserver, kubectl, External Secrets and Vault's Kubernetes auth method (the first build takes about 8 minutes on 2 cores)"
  KUBERNETES_PATH=$(scripts/kubernetes.sh)
  export KUBERNETES_PATH
fi

# On success, print the figures; on failure, print the full log.
if ! run; then
  grep -vE '^ *(=== |--- PASS)' "$log"
  exit 1
fi
grep -E 'FIGURE|^ok' "$log"
case $what in all | consumers | examples) formats ;; esac

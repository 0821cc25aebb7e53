#!/usr/bin/env bash
# Runs tests, and shows each as it ends, with a count. At the end it prints what failed, and only that. What the tests
# run is made first, by scripts/testtools.sh.
#
#   scripts/test.sh                unit, model and acceptance
#   scripts/test.sh SUITE...       unit, model, formats or a directory of acceptance/
#   scripts/test.sh examples       the tests that run a file of examples/
#   scripts/test.sh acceptance     formats, and all of acceptance/ but kubernetes
#
# RUN is a regular expression that chooses tests, and TESTFLAGS has more flags for them, such as -update. MODEL_RUNS is the
# number of runs of the randomized model test. VAULT_BIN=/path/to/vault chooses the server; without it scripts/vault.sh
# builds one. The complete output is in bin/test/log/, a file of JSON for each group of tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

suites=()
[ $# -gt 0 ] || set -- unit model acceptance
for suite in "$@"; do
  case $suite in
    unit | model | formats | examples | consumers | storms | engine | release | harness | bench | kubernetes) suites+=("$suite") ;;
    acceptance) suites+=(formats consumers storms engine release harness bench) ;;
    *)
      echo "test: there is no suite $suite; there are unit, model, formats, examples, acceptance and the directories of acceptance/" >&2
      exit 2
      ;;
  esac
done
has() { case " ${suites[*]} " in *" $1 "*) ;; *) return 1 ;; esac }

# say_missing names the tools whose tests will be skipped.
say_missing() {
  local tool
  for tool in node javac curl jq nginx ansible-playbook; do
    type -P "$tool" >/dev/null || echo "test: $tool is not installed, so its example will NOT RUN (on Debian: apt-get install nodejs default-jdk-headless curl jq nginx-light ansible)" >&2
  done
  python3 -c 'import hvac, requests' 2>/dev/null || /usr/bin/python3 -c 'import hvac, requests' 2>/dev/null ||
    echo "test: Python's hvac is not installed, so its example will NOT RUN (on Debian: apt-get install python3-hvac python3-requests)" >&2
  type -P terraform >/dev/null || echo "test: terraform is not installed, so its examples will NOT RUN" >&2
}

bin=$PWD/bin/test
mkdir -p "$bin/log"
export PLUGIN_BIN=$PWD/bin/vault-plugin-secrets-autopay
for suite in "${suites[@]}"; do
  case $suite in
    unit | model | formats) ;;
    *)
      [ -x "$PLUGIN_BIN" ] || {
        echo "test: $PLUGIN_BIN is missing; run 'make build' first" >&2
        exit 1
      }
      VAULT_BIN=$(scripts/vault.sh)
      export VAULT_BIN
      break
      ;;
  esac
done
if has consumers || has examples; then say_missing; fi
scripts/testtools.sh "${suites[@]/examples/consumers}"

# Tests keep their files here, so that none is left when they are interrupted.
TMPDIR=$(cd "$(mktemp -d)" && pwd -P)
export TMPDIR
trap 'rm -rf "$TMPDIR" || { sleep 2 && rm -rf "$TMPDIR"; }' EXIT # a server may have been writing while it was killed
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# json JOBS PAIRS FLAG... runs the test binaries NAME in DIRECTORY, for each pair of lines, JOBS at a time.
json() {
  # shellcheck disable=SC2016 # the inner shell expands it
  xargs -n 2 -P "$1" bash -c 'name=${*: -2:1} flags=("${@:1:$#-2}")
    cd "${*: -1}" && exec "$bin/test2json" -t -p "$name" "$bin/$name.test" "${flags[@]}"' _ "${@:3}" <<<"$2"
}
export bin
export -f json

# show TOTAL reads what gotestsum prints: a line for each test, with the output of those that failed, and both again at the
# end. It counts the lines, leaves out subtests, and lets output wait for the end.
show() {
  local line n=0 end=''
  while IFS= read -r line; do
    if [[ $line =~ ^(===\ (Failed|Errors)|DONE\ ) ]]; then end=1; fi
    if [ -n "$end" ]; then
      printf '%s\n' "$line"
    elif [[ $line =~ ^(PASS|FAIL|SKIP)\ [^/]*\.[^/]*\ \( ]]; then
      printf '[%*d of %d] %s\n' ${#1} $((++n)) "$1" "$line"
    fi
  done
}

any=${RUN:-.}
# run GROUP JOBS PATTERN [FLAG...] -- NAME DIRECTORY... runs the tests that match PATTERN. FLAG is one of a test binary's.
run() {
  local group=$1 jobs=$2 pattern=$3 flags=() total=0 i
  shift 3
  while [ "$1" != -- ]; do flags+=("$1") && shift; done
  shift
  local pairs=("$@")
  for ((i = 0; i < $#; i += 2)); do
    total=$((total + $(cd "${pairs[i + 1]}" && "$bin/${pairs[i]}.test" -test.list "$pattern" | grep -cE '^(Test|Fuzz|Example)')))
  done
  printf '\ntest: %s, %d tests\n' "$group" "$total"
  # shellcheck disable=SC2086 # TESTFLAGS is words
  "$bin/gotestsum" --format testname --format-icons text --hide-summary skipped --jsonfile "$bin/log/$group.json" --raw-command -- \
    bash -c 'json "$@"' _ "$jobs" "$(printf '%s\n' "$@")" \
    -test.v=test2json -test.paniconexit0 -test.timeout=30m -test.run="$pattern" "${flags[@]}" ${TESTFLAGS-} |
    show "$total" || {
    echo "test: $group FAILED; the complete output is in bin/test/log/$group.json" >&2
    exit 1
  }
  sed -n 's/.*"Output":".*\(FIGURE.*\)\\n".*/\1/p' "$bin/log/$group.json"
}

if has unit; then
  run unit 1 "$any" -- unit-root . unit-cmd cmd/autopaysim unit-autopaysim internal/autopaysim unit-pack tools/release/pack unit-docs docs
fi
if has model; then
  run model 1 '^(TestModel|TestConcurrentLives)$' "-model.runs=${MODEL_RUNS:-500}" -- model .
fi
# The tests in Vault servers mostly wait, so four run at a time, more than there are processors. Two packages with two
# tests each keep all four busy to the end; with one package at a time, three would idle while the last long test of each
# finishes. The longest packages come first. The bench suite measures latency and comes last, alone on the machine.
pairs=()
for suite in consumers storms engine release harness kubernetes; do
  if has "$suite"; then pairs+=("$suite" "acceptance/$suite"); fi
done
if has formats; then
  pairs+=(manifests acceptance/consumers/manifests prometheus acceptance/consumers/prometheus)
fi
if [ ${#pairs[@]} -gt 0 ]; then
  jobs=2
  [ ${#pairs[@]} -gt 2 ] || jobs=1
  run acceptance $jobs "$any" -test.parallel=$((4 / jobs)) -- "${pairs[@]}"
fi
if has examples; then run examples 1 '^TestExample' -test.parallel=4 -- consumers acceptance/consumers; fi
if has bench; then run bench 1 "$any" -- bench acceptance/bench; fi

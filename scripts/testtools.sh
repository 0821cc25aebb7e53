#!/usr/bin/env bash
# Makes what the tests run, into bin/test/, so that nothing is built or downloaded while a test runs: the test binaries
# themselves, the consumers of the token, other versions of the plugin. Programs from published modules stay in the cache
# of scripts/published.sh, and bin/test/ has links to them.
#
#   scripts/testtools.sh SUITE...
#
# SUITE is unit, model, formats, bench or a directory of acceptance/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
bin=$root/bin/test
mkdir -p "$bin"

# want HOW NAME... notes what makes bin/test/NAME, once.
names=() commands=()
want() {
  case " ${names[*]-} " in *" $2 "*) return ;; esac
  names+=("$2") commands+=("$(printf '%q ' "$@")")
}

# ---- what makes things

# package builds a program of our own, and tests the test binary of a directory. -trimpath and no cgo, as the plugin is
# built, so that they share the packages in Go's cache.
package() { # NAME DIRECTORY PACKAGE [FLAG...]
  (cd "$2" && CGO_ENABLED=0 "$root/scripts/gobuild.sh" "$1" "$bin/$1" "$3" -trimpath "${@:4}")
}
tests() { # NAME DIRECTORY
  (cd "$2" && CGO_ENABLED=0 "$root/scripts/gobuild.sh" -test "$1" "$bin/$1" . -trimpath -tags acceptance)
}
race_tests() { # NAME DIRECTORY
  (cd "$2" && CGO_ENABLED=${race:-0} "$root/scripts/gobuild.sh" -test "$1" "$bin/$1" . ${race:+-race})
}
published() { # NAME MODULE DIRECTORY PACKAGE [FLAG...]
  local program
  program=$(scripts/published.sh "$@")
  ln -sfn "$program" "$bin/$1"
}
module() { # NAME MODULE@VERSION CHECKSUM: a link to the source of a module that no go.mod can require
  local json dir
  json=$(go mod download -json "$2")
  grep -qF "\"Sum\": \"$3\"" <<<"$json" || {
    echo "testtools: $2 does not have the checksum $3" >&2
    return 1
  }
  dir=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$json")
  ln -sfn "$dir" "$bin/$1"
}
source_of() { # NAME MODULE DIRECTORY: the same for one that the go.mod in DIRECTORY requires
  ln -sfn "$(go -C "$3" list -m -f '{{.Dir}}' "$2")" "$bin/$1"
}
java() { # NAME
  rm -rf "${bin:?}/$1"
  javac -Xlint:all -Werror --release 17 -d "$bin/$1" examples/java/*.java
}
release() { # NAME
  DIST=$bin/$1 PLATFORMS="$(go env GOOS)/$(go env GOARCH)" scripts/release.sh >/dev/null
}
test2json() { # NAME
  ln -sfn "$(go tool -n test2json)" "$bin/$1"
}

# ---- what each suite needs

next_version() { # another version of the plugin, to upgrade to; harness.NextVersion is the same
  want package vault-plugin-secrets-autopay-v0.1.1 . . -buildvcs=false -ldflags '-X main.version=v0.1.1'
}
formats() {
  want published promtool github.com/prometheus/prometheus acceptance/consumers/prometheus \
    github.com/prometheus/prometheus/cmd/promtool -tags=remove_all_sd
  want tests manifests.test acceptance/consumers/manifests
  want tests prometheus.test acceptance/consumers/prometheus
}
consumers() {
  local consul_template=github.com/hashicorp/consul-template directory=acceptance/consumers/consultemplate
  want published consul-template $consul_template $directory $consul_template
  want published consul-template-wait $consul_template $directory .
  if type -P terraform >/dev/null; then
    want published terraform-provider-vault github.com/hashicorp/terraform-provider-vault acceptance/consumers/terraform \
      github.com/hashicorp/terraform-provider-vault
  fi
  want package example-go examples/go .
  if type -P javac >/dev/null; then want java example-java; fi
}
kubernetes() {
  local servers=acceptance/kubernetes/servers external=github.com/external-secrets/external-secrets
  local auth=github.com/hashicorp/vault-plugin-auth-kubernetes
  want published etcd go.etcd.io/etcd/server/v3 $servers go.etcd.io/etcd/server/v3
  local version=(-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=VERSION')
  want published kube-apiserver k8s.io/kubernetes $servers k8s.io/kubernetes/cmd/kube-apiserver "${version[@]}"
  want published kubectl k8s.io/kubernetes $servers k8s.io/kubernetes/cmd/kubectl "${version[@]}"
  want published vault-plugin-auth-kubernetes $auth acceptance/vault $auth/cmd/vault-plugin-auth-kubernetes
  want published external-secrets $external acceptance/kubernetes/externalsecrets $external
  want source_of external-secrets-source $external acceptance/kubernetes/externalsecrets
  # This version can't be required, because it has modules inside that are not published; but it ships the definitions of
  # its resources.
  want module external-secrets-1.3.2-source $external@v1.3.2 h1:u2J8RjlHIeF0oZCqtl92adI/uZWUwOesJIDkfql6LqQ=
}

want published gotestsum gotest.tools/gotestsum tools/test gotest.tools/gotestsum
want test2json test2json
for suite in "$@"; do
  case $suite in
    unit)
      # The race detector needs a C compiler. In CI there is one.
      race=1 cc=$(go env CC)
      if ! type -P "${cc%% *}" >/dev/null; then
        echo "testtools: there is no C compiler ($cc), so the unit tests have no race detector; install gcc to get it" >&2
        [ -z "${CI-}" ] || exit 1
        race=
      fi
      want race_tests unit-root.test .
      want race_tests unit-cmd.test cmd/autopaysim
      want race_tests unit-autopaysim.test internal/autopaysim
      want tests unit-pack.test tools/release/pack
      want tests unit-docs.test docs
      ;;
    model) want tests model.test . ;;
    formats) formats ;;
    consumers) consumers ;;
    engine) next_version ;;
    release)
      next_version
      want release release
      want package crane tools/release github.com/google/go-containerregistry/cmd/crane
      ;;
    kubernetes) kubernetes ;;
    bench) want package ordinary acceptance/bench/ordinary . -buildvcs=false ;;
  esac
  if [ -d "acceptance/$suite" ]; then want tests "$suite.test" "acceptance/$suite"; fi
done

for i in "${!names[@]}"; do
  printf 'testtools: %d of %d, %s\n' $((i + 1)) ${#names[@]} "${names[i]}"
  eval "${commands[i]}"
done

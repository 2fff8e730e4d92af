#!/usr/bin/env bash
# Runs clients that are not kvroute's own through the gateway, before two mock instances: curl, the openai package and
# guidellm. Needs Rust, curl, and Python 3.11 or newer with venv and pip; installs pinned versions of the rest.
#
#   scripts/clients/run.sh [curl] [openai] [guidellm]     (all of them by default)
#
# Python environments are kept in $KVROUTE_CLIENTS_CACHE, by default target/clients.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

fail() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 1
}

export PYTHONDONTWRITEBYTECODE=1
clients=("$@")
[[ $# -gt 0 ]] || clients=(curl openai guidellm)
for client in "${clients[@]}"; do
  [[ $client =~ ^(curl|openai|guidellm)$ ]] || fail "no client $client; there are curl, openai and guidellm"
done
command -v curl >/dev/null || fail "curl is missing; install it"
command -v python3 >/dev/null || fail "python3 is missing; install Python 3.11 or newer with venv"
python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "python3 is older than 3.11 or has no venv; install Python 3.11 or newer with venv (Debian: python3-venv)"

# environment NAME: a virtual environment with requirements-NAME.txt.
cache=${KVROUTE_CLIENTS_CACHE:-target/clients}
environment() {
  local dir=$cache/$1 wanted=$here/requirements-$1.txt
  if ! cmp -s "$wanted" "$dir/installed.txt"; then
    python3 -m venv --clear "$dir" >&2
    "$dir/bin/pip" install --quiet --no-compile --disable-pip-version-check --requirement "$wanted" >&2 ||
      fail "cannot install $wanted; is PyPI within reach?"
    cp "$wanted" "$dir/installed.txt"
  fi
}

cargo build --release --locked --quiet -p kvroute-cli
binary=${CARGO_TARGET_DIR:-$PWD/target}/release/kvroute
logs=$(mktemp -d)
pids=()

# The processes are stopped by their ids, and each must end well.
stop() {
  local status=$? pid
  trap - EXIT
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" || { printf 'run.sh: process %s ended with status %s\n' "$pid" "$?" >&2 && status=1; }
  done
  if [[ $status != 0 ]]; then
    tail -n 20 "$logs"/* >&2
  fi
  rm -rf "$logs"
  exit "$status"
}
trap stop EXIT

# within SECONDS WHAT COMMAND...: waits until the command succeeds.
within() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || fail "$what: not in time"
    sleep 0.1
  done
}

"$binary" mock --instances 2 --port 0 >"$logs/mock.out" 2>"$logs/mock.err" &
pids+=($!)
has_two_urls() { [[ $(wc -l <"$logs/mock.out") == 2 ]]; }
within 20 "mock instances" has_two_urls
mapfile -t mocks <"$logs/mock.out"
"$binary" serve --instance "${mocks[@]}" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 2>"$logs/serve.err" &
# The gateway goes first.
pids=($! "${pids[@]}")
is_up() { grep -q '^gateway on ' "$logs/serve.err"; }
within 20 "the gateway" is_up
read -r KVROUTE_GATEWAY KVROUTE_ADMIN < <(sed -n 's/^gateway on \(.*\), admin on \(.*\)$/\1 \2/p' "$logs/serve.err")
export KVROUTE_GATEWAY KVROUTE_ADMIN KVROUTE_MOCKS="${mocks[*]}" KVROUTE_BINARY=$binary
is_ready() { curl -sf -m 1 -o /dev/null "$KVROUTE_GATEWAY/ready"; }
within 20 "a gateway that is ready" is_ready

for client in "${clients[@]}"; do
  printf -- '-- %s\n' "$client"
  began=$SECONDS
  case $client in
    curl) "$here/curl.sh" ;;
    openai)
      environment openai
      "$cache/openai/bin/python" -m pytest -q -p no:cacheprovider "$here/test_openai.py"
      ;;
    guidellm)
      environment guidellm
      "$cache/guidellm/bin/python" "$here/guidellm_check.py"
      ;;
  esac
  printf -- '-- %s done in %s s\n' "$client" $((SECONDS - began))
done

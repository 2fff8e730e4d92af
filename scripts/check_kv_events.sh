#!/usr/bin/env bash
# Starts `kvroute mock --kv-events`, sends it requests and has scripts/clients/kv_events.py (pyzmq, real libzmq) follow
# and check what it publishes, with both hash algorithms.
#
#   scripts/check_kv_events.sh [WORK_DIR]     WORK_DIR gets the Python environment; a temporary one by default
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
mock=
trap '[ -z "$mock" ] || kill "$mock" 2>/dev/null || true; [ $# -gt 0 ] || rm -rf "$work"' EXIT

cargo build --release --locked --quiet
kvroute=${CARGO_TARGET_DIR:-target}/release/kvroute
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyzmq==27.1.0 msgpack==1.1.2

for algo in sha256 sha256_cbor; do
  # Not what the mock before this one wrote.
  rm -f "$work/endpoints"
  "$kvroute" mock --port 0 --profile cpu-tiny --time-scale 100 --kv-events --kv-events-topic kv@0 \
    --prefix-caching-hash-algo "$algo" >"$work/endpoints" &
  mock=$!
  for _ in $(seq 100); do [ -s "$work/endpoints" ] && break; sleep 0.1; done
  read -r url events replay <"$work/endpoints"
  echo "$url publishes at $events, replays at $replay"
  "$work/venv/bin/python" - "$url" <<'PY' &
import json, sys, urllib.request

def complete(prompt, **more):
    body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, **more}
    request = urllib.request.Request(
        sys.argv[1] + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()

# More blocks than the cache holds, so that some are removed; salts; a prompt that grows.
for turn in range(30):
    complete([(turn * 977 + i * 31) % 16000 for i in range(1500)])
    complete(list(range(500, 600 + 50 * turn)), cache_salt=f"tenant-{turn % 2}")
PY
  requests=$!
  "$work/venv/bin/python" scripts/clients/kv_events.py "$url" --count 60 --check >"$work/events.jsonl"
  wait "$requests"
  # Once more, now that all is there: the replay alone, from the first batch.
  "$work/venv/bin/python" scripts/clients/kv_events.py "$url" --count 60 --check >"$work/events.jsonl"
  for type in BlockStored BlockRemoved; do
    grep -q "\"type\": \"$type\"" "$work/events.jsonl" || { echo "no $type in the events" >&2; exit 1; }
  done
  kill "$mock"
  wait "$mock"
  mock=
done

#!/usr/bin/env bash
# An experiment that is killed ten times at random moments, and run on each time, has the results of one that was not.
#
#   scripts/check_resume.sh [EXPERIMENT [SEED]]
#
# Compares results.json but for times; prints how many runs were there at each kill.
set -euo pipefail
cd "$(dirname "$0")/.."
experiment=${1:-experiments/exp1-chat.toml}
RANDOM=${2:-$$}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cargo build --release --locked --quiet
kvroute=${CARGO_TARGET_DIR:-target}/release/kvroute
whole=("$kvroute" experiment run "$experiment" --quick --out)

began=$(date +%s%N)
"${whole[@]}" "$out/whole" >"$out/whole.log"
took_ms=$((($(date +%s%N) - began) / 1000000))

lines() { cat "$out"/broken/*.jsonl 2>/dev/null | wc -l; }
kills=0
while ((kills < 10)); do
  "${whole[@]}" "$out/broken" >/dev/null 2>&1 &
  pid=$!
  after_ms=$((RANDOM % took_ms))
  sleep "$(printf '%d.%03d' $((after_ms / 1000)) $((after_ms % 1000)))"
  if ! kill -9 "$pid" 2>/dev/null; then
    # It had ended before: begin anew, so that ten are really killed.
    rm -rf "$out/broken"
  else
    kills=$((kills + 1))
    echo "killed after $after_ms ms, $(lines) lines written"
  fi
  wait "$pid" 2>/dev/null || true
done
"${whole[@]}" "$out/broken" >"$out/broken.log"
python3 - "$out/whole/results.json" "$out/broken/results.json" <<'PY'
import json, sys

def results(path):
    found = json.load(open(path))
    # Paths and times are not results.
    for key in ["command", "started_at"]:
        del found["manifest"][key]
    for run in found["runs"]:
        del run["result"]["wall_s"]
    return found

whole, broken = (results(path) for path in sys.argv[1:])
assert len(whole["runs"]) > 10, len(whole["runs"])
assert whole == broken, "an interrupted experiment has other results"
print(f"{len(whole['runs'])} runs, the same after ten kills")
PY

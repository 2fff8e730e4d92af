#!/usr/bin/env bash
# An experiment that is killed ten times at random moments, and run on each time, has the results of one that was not. So has
# one that found no room for half of its runs, said so, and was run on with room.
#
#   scripts/check_resume.sh [EXPERIMENT [SEED]]
#
# Compares results.json but for times; prints how many runs were there at each stop.
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

lines() { cat "$out/$1"/*.jsonl 2>/dev/null | wc -l; }
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
    echo "killed after $after_ms ms, $(lines broken) lines written"
  fi
  wait "$pid" 2>/dev/null || true
done
"${whole[@]}" "$out/broken" >"$out/broken.log"

# A limit of the size of files is met like the end of a disk: the last write is cut short, the next refused.
half_kib=$(($(wc -c <"$out/whole/runs.jsonl") / 2048))
if (trap '' XFSZ && ulimit -f "$half_kib" && "${whole[@]}" "$out/full" >"$out/full.log" 2>&1); then
  echo "an experiment without room for its runs says that all is well" >&2
  exit 1
fi
grep -q 'cannot write .*runs.jsonl' "$out/full.log" || { cat "$out/full.log" >&2; exit 1; }
echo "no room after $half_kib KiB, $(lines full) lines written"
"${whole[@]}" "$out/full" >"$out/full.log"

python3 - "$out"/{whole,broken,full}/results.json <<'PY'
import json, sys

def results(path):
    found = json.load(open(path))
    # Paths and times are not results.
    for key in ["command", "started_at"]:
        del found["manifest"][key]
    for run in found["runs"]:
        del run["result"]["wall_s"]
    return found

whole, broken, full = (results(path) for path in sys.argv[1:])
assert len(whole["runs"]) > 10, len(whole["runs"])
assert whole == broken, "an interrupted experiment has other results"
assert whole == full, "an experiment that had no room for a while has other results"
print(f"{len(whole['runs'])} runs, the same after ten kills, and after a full disk")
PY

#!/usr/bin/env bash
# Sends 500 random requests, one at a time, to a real vLLM and holds the engine model to what each did to the prefix cache.
#
#   scripts/real_vllm/differential.sh URL RECORDING [options of record_differential.py: --seed N --requests N ...]
#
# URL is an idle instance as serve.sh starts it; RECORDING is the file to write, to be compared again at any time with
# `cargo run --release -p kvroute-engine --example differential -- RECORDING`. PYTHON is a Python with pyzmq and msgspec
# (default: serve.sh's). Exit status 0: all is identical; 1: something differs; other: it could not be found out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [[ $# -lt 2 || $1 == -* ]]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
url=$1 recording=$2
shift 2
root=$here/../..
venv=${KVROUTE_REAL_VLLM:-$root/target/real-vllm}/venv
"${PYTHON:-$venv/bin/python}" "$here/record_differential.py" "$url" "$recording" "$@" || exit 3
cargo run --release --locked --quiet --manifest-path "$root/Cargo.toml" -p kvroute-engine --example differential -- "$recording"

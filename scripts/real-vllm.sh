#!/usr/bin/env bash
# Holds kvroute to a real vLLM: the exact index, its recovery, and the simulator's predictions. Not part of CI.
#
#   scripts/real-vllm.sh [differential] [index] [recovery] [fidelity] [options of scripts/real_vllm/suite.py]
#
# Without names, all of them. See scripts/real_vllm/README.md for what it needs and what each shows.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${KVROUTE_REAL_VLLM:-target/real-vllm}
cargo build --release --locked --quiet
scripts/real_vllm/serve.sh --setup-only --work "$work"
exec "$work/venv/bin/python" scripts/real_vllm/suite.py --work "$work" \
  --kvroute "${CARGO_TARGET_DIR:-target}/release/kvroute" "$@"

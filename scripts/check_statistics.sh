#!/usr/bin/env bash
# Holds what is made of runs to other people's code: quantiles, intervals over seeds and the end of the warm-up (crates/lab) to
# numpy and scipy (scripts/check_statistics.py says how), the Parquet files (crates/rows) to pyarrow (scripts/check_rows.py).
#
#   scripts/check_statistics.sh [WORK_DIR]     WORK_DIR gets the Python environment; a temporary one by default
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
trap '[ $# -gt 0 ] || rm -rf "$work"' EXIT

cargo build --release --locked --quiet -p kvroute-lab -p kvroute-rows --examples
python3 -m venv "$work/venv-statistics"
"$work/venv-statistics/bin/pip" install --quiet numpy==2.3.4 scipy==1.16.3 pyarrow==22.0.0
python="$work/venv-statistics/bin/python"
examples=${CARGO_TARGET_DIR:-target}/release/examples
"$python" scripts/check_statistics.py "$examples/statistics"
"$python" scripts/check_rows.py "$examples/rows" "$work"

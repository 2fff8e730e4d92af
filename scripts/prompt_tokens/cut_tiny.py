#!/usr/bin/env python3
"""Makes tests/fixtures/tiny and recorded.json of crates/prompt-tokens from answers recorded of a real vLLM 0.32.0.

usage: cut_tiny.py MODEL_DIR HTTP_DIR OUT_DIR

MODEL_DIR is the served model's directory, HTTP_DIR holds `requests.json` and the raw answers. Of the tokenizer only
the tokens and merges that can occur in the recorded texts are kept, under their ids: a merge whose result is no part of
any of the texts never applies to them.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

MODEL, HTTP, OUT = map(Path, sys.argv[1:])


def answer(name):
    raw = (HTTP / f"{name}.txt").read_text()
    body = raw.split("\n\n", 1)[1]
    return json.loads(body) if body.startswith("{") else {}


def main():
    recorded, texts = [], []
    for name, request in json.loads((HTTP / "requests.json").read_text()).items():
        body, path = request["body"], request["path"]
        if request["status"] != 200 or not isinstance(body, dict) or body.get("stream") or "token" in name and path != "/tokenize":
            continue
        reply = answer(name)
        ids = reply.get("tokens") or reply.get("prompt_token_ids")
        count = reply.get("count") or (reply.get("usage") or {}).get("prompt_tokens")
        if not count or not ("prompt" in body or "messages" in body) or path == "/v1/messages":
            continue
        endpoint = "chat" if "messages" in body else "completions"
        keep = {key: body[key] for key in ("messages", "prompt", "max_tokens") if key in body}
        entry = {"name": name, "endpoint": endpoint, "body": keep, "count": count} | ({"ids": ids} if ids else {})
        if any({**entry, "name": 0} == {**other, "name": 0} for other in recorded) or len(json.dumps(keep)) > 2000:
            continue
        recorded.append(entry)
        texts += [message["content"] for message in body.get("messages", [])] + ["\n", "system\n", "user\n", "assistant\n"]
        prompt = body.get("prompt", [])
        texts += [prompt] if isinstance(prompt, str) else [text for text in prompt if isinstance(text, str)]

    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    occurs = lambda token: any(token in word for word in words)
    model = tokenizer["model"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    model["vocab"] = {token: id_ for token, id_ in model["vocab"].items()
                      if len(token) == 1 or token in special or occurs(token)}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]
                       and all(part in model["vocab"] for part in merge)]

    whole = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    cut = Tokenizer.from_str(json.dumps(tokenizer))
    assert all(whole.encode(text).ids == cut.encode(text).ids for text in texts)
    (OUT / "tiny").mkdir(parents=True, exist_ok=True)
    (OUT / "tiny/tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")
    for name in ("tokenizer_config.json", "config.json"):
        (OUT / "tiny" / name).write_text((MODEL / name).read_text())
    lines = ",\n".join(json.dumps(entry) for entry in recorded)
    (OUT / "recorded.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(recorded)} requests, {len(model['vocab'])} tokens, {len(model['merges'])} merges")


if __name__ == "__main__":
    main()

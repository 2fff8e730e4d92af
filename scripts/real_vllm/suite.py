"""The checks of scripts/real-vllm.sh: kvroute before real vLLM instances on the CPU.

Prints what it found as it goes and writes it to WORK/results; exits with 1 if a check failed.
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import zmq

HERE = Path(__file__).resolve().parent
CHECKS = ["differential", "index", "recovery", "fidelity"]
BLOCK_SIZE, BLOCKS, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN = 32, 512, 32, 2048, 8192
VOCABULARY = 8000
POLICIES = ["round-robin", "jsq", "load-cache"]


def get(url, timeout=10):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_until(what, is_so, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if is_so():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"never: {what}")


class Instance:
    """One vLLM on a core of its own, whose process can be killed and started again."""

    def __init__(self, args, number, *more):
        self.args, self.number, self.more = args, number, more
        self.port = args.port + number
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.start()

    def start(self):
        command = [
            str(HERE / "serve.sh"), "--work", str(self.args.work), "--port", str(self.port),
            "--core", str(self.number), *self.more,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)

    def wait(self):
        for line in self.process.stdout:
            if line.startswith("ALL READY"):
                return self
        raise SystemExit(f"instance {self.number} did not start; see vllm-{self.port}.log in {self.args.work}")

    def kill(self):
        """SIGKILL to the server and its engine."""
        leader = int((self.args.work / f"vllm-{self.port}.pid").read_text())
        os.killpg(leader, signal.SIGKILL)
        self.process.wait(timeout=60)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)


@contextmanager
def instances(args, count, *more):
    running = [Instance(args, number, *more) for number in range(count)]
    try:
        yield [instance.wait() for instance in running]
    finally:
        for instance in running:
            instance.stop()


class Gateway:
    """`kvroute serve` with the model's tokenizer, listening to KV events."""

    def __init__(self, args, urls, endpoints=None, number=0):
        port = args.port + 60 + 2 * number
        config = args.work / f"gateway-{port}.toml"
        text = f'listen = "127.0.0.1:{port}"\nadmin_listen = "127.0.0.1:{port + 1}"\n'
        text += f"[kv_events]\nenabled = true\nblock_size = {BLOCK_SIZE}\n"
        text += f'[prompt]\ntokenizer = "{args.work / "tiny"}"\n'
        for number, url in enumerate(urls):
            text += f'[[instances]]\nurl = "{url}"\n'
            if endpoints:
                events, replay = endpoints[number]
                text += f'kv_events = {{ endpoint = "{events}", replay_endpoint = "{replay}" }}\n'
        config.write_text(text)
        self.url = f"http://127.0.0.1:{port}"
        self.admin = f"http://127.0.0.1:{port + 1}"
        self.log = open(args.work / f"gateway-{port}.log", "w")
        environment = dict(os.environ, KVROUTE_LOG="info")
        self.process = subprocess.Popen(
            [args.kvroute, "serve", "--config", config], stderr=self.log, env=environment)
        wait_until("the gateway is ready", lambda: get(self.url + "/ready") is not None)
        wait_until("all instances are believed", lambda: all(it["believed"] for it in self.indexes()))

    def indexes(self):
        return [it["kv_events"] for it in json.loads(get(self.admin + "/instances"))]

    def metric(self, name, *labels):
        total = 0.0
        for line in get(self.admin + "/metrics").splitlines():
            if re.match(name + r"[{ ]", line) and all(label in line for label in labels):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()


def load(args, target, requests, seed, *more):
    """`kvroute load` of conversations without pauses; its results, and a record of each request."""
    out = args.work / "load"
    busy = args.work / "busy.toml"
    think = 'think_time_s = { kind = "constant", value = 0.05 }'
    busy.write_text(re.sub(r"think_time_s = .*", think, (HERE / "chat.toml").read_text()))
    command = [
        args.kvroute, "load", "--target", target, "--workload", str(busy), "--requests", str(requests),
        "--seed", str(seed), "--out", str(out), "--format", "json", *more,
    ]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    records = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    return json.loads(printed)["runs"][0], records


def shares(records):
    """Precision, recall and what is off, over requests whose answer told its cached tokens."""
    known = [(r["predicted_cached_tokens"], r["cached_tokens"]) for r in records
             if r["cached_tokens"] is not None and r["predicted_cached_tokens"] is not None]
    predicted, cached = sum(p for p, _ in known), sum(c for _, c in known)
    both = sum(min(p, c) for p, c in known)
    return {
        "requests": len(known), "predicted_tokens": predicted, "cached_tokens": cached,
        "precision": both / predicted if predicted else None, "recall": both / cached if cached else None,
        "exact": sum(p == c for p, c in known),
        "too_much": sum(p > c for p, c in known), "too_much_tokens": sum(p - c for p, c in known if p > c),
        "too_little": sum(p < c for p, c in known), "too_little_tokens": sum(c - p for p, c in known if p < c),
    }


class Report:
    def __init__(self, work):
        self.failed, self.found = [], {}
        self.directory = work / "results"
        self.directory.mkdir(exist_ok=True)

    def say(self, text):
        print(text, flush=True)

    def check(self, what, is_so, **figures):
        self.found[what] = {"ok": bool(is_so), **figures}
        shown = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        self.say(f"{'ok    ' if is_so else 'FAILED'} {what}: {shown}")
        if not is_so:
            self.failed.append(what)

    def write(self, name):
        (self.directory / f"{name}.json").write_text(json.dumps(self.found, indent=1) + "\n")


def differential(args, report):
    """500 random requests, one at a time: the engine model does exactly what vLLM does."""
    with instances(args, 1, "--blocks", "256", "--max-model-len", "4096", "--max-num-batched-tokens", "1024") as [one]:
        for seed in args.seeds:
            recording = args.work / f"differential-{seed}.jsonl"
            command = [str(HERE / "differential.sh"), one.url, str(recording), "--seed", str(seed)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            report.say(done.stdout.rstrip())
            report.check(f"differential, seed {seed}", done.returncode == 0)


def index(args, report):
    """Predictions of cached tokens from real events, eight requests at a time over two instances, with eviction."""
    with instances(args, 2, "--blocks", str(BLOCKS)) as running:
        urls = [it.url for it in running]
        for seed in args.seeds:
            with Gateway(args, urls) as gateway:
                _, records = load(
                    args, gateway.url, args.index_requests, seed, "--closed-loop", "8", "--instance", *urls)
                found = shares(records)
                held = [it["blocks"] for it in gateway.indexes()]
                report.check(
                    f"index, seed {seed}: precision and recall over 0.99",
                    found["precision"] > 0.99 and found["recall"] > 0.99, **found)
                report.check(f"index, seed {seed}: caches are full", all(it > 0.9 * BLOCKS for it in held), held=held)


def drop(source, sink, share, stop, seed=1):
    """A ZMQ proxy that loses a share of the messages of a publisher."""
    context, draw = zmq.Context(), random.Random(seed)
    subscriber, publisher = context.socket(zmq.SUB), context.socket(zmq.PUB)
    subscriber.connect(source)
    subscriber.subscribe(b"")
    publisher.bind(sink)
    lost = 0
    while not stop.is_set():
        if subscriber.poll(100):
            frames = subscriber.recv_multipart()
            if draw.random() < share:
                lost += 1
            else:
                publisher.send_multipart(frames)
    context.destroy(linger=0)
    return lost


def recovery(args, report):
    """The index is right again after what can go wrong, without a restart of the gateway."""
    def settled(gateway, what, requests=200, seed=77):
        _, records = load(args, gateway.url, requests, seed, "--closed-loop", "2")
        found = shares(records)
        audit = gateway.indexes()
        report.check(
            what, found["precision"] > 0.99 and found["recall"] > 0.99 and all(it["believed"] for it in audit), **found,
            audit=[(it["precision"], it["recall"]) for it in audit], doubts=gateway.metric("kvroute_index_doubts_total"))

    with instances(args, 2, "--blocks", str(BLOCKS)) as running:
        urls = [it.url for it in running]
        for url in urls:
            load(args, url, 100, 5, "--closed-loop", "4")
        with Gateway(args, urls) as gateway:
            held = [it["blocks"] for it in gateway.indexes()]
            report.check("started in the middle: the past is known", all(it > 0.5 * BLOCKS for it in held), held=held)
            settled(gateway, "started in the middle")

            busy = threading.Thread(target=load, args=(args, gateway.url, 300, 6, "--closed-loop", "8"))
            busy.start()
            time.sleep(10)
            running[1].kill()
            running[1].start()
            busy.join()
            running[1].wait()
            wait_until("the instance is believed again", lambda: all(it["believed"] for it in gateway.indexes()))
            wait_until("the instance is in use", lambda: all(it["up"] for it in json.loads(get(gateway.admin + "/instances"))))
            report.check(
                "killed and restarted: noticed", gateway.indexes()[1]["restarts"] >= 1,
                restarts=gateway.indexes()[1]["restarts"])
            settled(gateway, "killed and restarted", seed=78)

        stop, lost, proxies, endpoints = threading.Event(), {}, [], []
        for number, instance in enumerate(running):
            source, sink = f"tcp://127.0.0.1:{instance.port + 20}", f"tcp://127.0.0.1:{args.port + 80 + number}"
            def run(number=number, source=source, sink=sink):
                lost[number] = drop(source, sink, 0.05, stop)
            proxies.append(threading.Thread(target=run))
            proxies[-1].start()
            endpoints.append((sink, f"tcp://127.0.0.1:{instance.port + 40}"))
        try:
            with Gateway(args, urls, endpoints) as gateway:
                settled(gateway, "5 % of events dropped, replays whole", requests=300, seed=79)
                gaps = gateway.metric("kvroute_kv_events_total", 'event="gaps"')
                replayed = gateway.metric("kvroute_kv_events_total", 'event="replayed"')
                batches = gateway.metric("kvroute_kv_events_total", 'event="batches"')
                missing = gateway.metric("kvroute_kv_events_total", 'event="lost_batches"')
        finally:
            stop.set()
            for proxy in proxies:
                proxy.join()
        report.check(
            "5 % of events dropped: all fetched", missing == 0 and gaps > 0, batches=batches, dropped=sum(lost.values()),
            gaps=gaps, replayed=replayed, lost_batches=missing)


def interval(values):
    """Mean and half the width of its 95 % interval (Student's t)."""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, t.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5


def scaled(text, stretch, overhead_s):
    """A profile whose steps take `stretch` times as long, with `overhead_s` more before each request."""
    section, lines = "", []
    for line in text.splitlines():
        section = line if line.startswith("[") else section
        key, _, value = line.partition(" = ")
        if section == "[step]" and re.fullmatch(r"\w+_s(_per_\w+)?", key):
            line = f"{key} = {float(value) * stretch!r}"
        elif key == "request_overhead_s" and not section:
            line = f"{key} = {float(value) + overhead_s!r}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def under_load(args, report, urls, validate, idle):
    """The profile of an instance that shares its core with its own front end, a gateway and a client.

    `calibrate` measures one request after the other at an idle instance. Here the chat is played at the first instance, with
    its neighbour under the same load: the steps are stretched until the simulated TPOT is the measured one in the mean, then
    requests wait until TTFT is. Seeds are others than those of the comparison.
    """
    measured = args.work / "loaded.jsonl"
    profile = args.work / "loaded.toml"
    workload = ["--workload", str(HERE / "chat.toml"), "--rate", str(args.rate / 2)]
    requests = ["--requests", str(args.loaded_requests), "--seed", "1001"]
    with Gateway(args, urls[:1], number=0) as own, Gateway(args, urls[1:], number=1) as others:
        neighbour = subprocess.Popen(
            [args.kvroute, "load", "--target", others.url, *workload, "--requests", "100000", "--seed", "1002",
             "--prompts", "token-ids", "--out", args.work / "load"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            validate(idle, *workload, *requests, "--live", own.url, "--instances", "1", "--save-measured", measured)
        finally:
            neighbour.kill()
            neighbour.wait()
    text, stretch, overhead_s = idle.read_text(), 1.0, 0.0
    for step in range(8):
        profile.write_text(scaled(text, stretch, overhead_s))
        found = validate(profile, *workload, *requests, "--measured", measured, "--instances", "1")
        tpot, ttft = found["tpot_ms"]["mean"], found["ttft_ms"]["mean"]
        if step < 5:
            stretch *= tpot["measured"] / tpot["simulated"]
        elif step < 7:
            overhead_s += (ttft["measured"] - ttft["simulated"]) / 1e3
    report.found.setdefault("under_load", []).append({"stretch": stretch, "overhead_ms": 1e3 * overhead_s, "requests": args.loaded_requests})
    report.say(f"  under load steps take {stretch:.3f} times as long as at an idle instance, and a request waits"
               f" {1e3 * overhead_s:.2f} ms more")
    return profile


def fidelity(args, report):
    """Two instances behind the gateway beside their simulation: hit rate, TTFT, and the order of policies."""
    sizes = ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)]

    def validate(profile, *more):
        command = [
            args.kvroute, "validate", "--profile", profile, "--kv-blocks", str(BLOCKS), "--sync-scheduling",
            "--vocabulary", str(VOCABULARY), "--format", "json", *sizes, *more,
        ]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return json.loads(printed)

    rows = []
    with instances(args, 2, "--blocks", str(BLOCKS)) as running:
        urls = [it.url for it in running]
        idle = args.work / "fidelity.toml"
        subprocess.run(
            [args.kvroute, "calibrate", "--instance", urls[0], "--out", idle, "--name", "real-vllm-cpu", *sizes],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for number, seed in enumerate(args.seeds):
            # Anew each time, since a machine's speed moves within the hour.
            profile = under_load(args, report, urls, validate, idle)
            order = POLICIES[number % 3:] + POLICIES[:number % 3]
            for policy in order:
                found = validate(
                    profile, "--live", *urls, "--policy", policy, "--workload", str(HERE / "chat.toml"),
                    "--requests", str(args.fidelity_requests), "--rate", str(args.rate), "--seed", str(seed),
                    "--directory", "events", "--load-refresh", "100ms",
                    "--save-measured", args.work / f"measured-{policy}-{seed}.jsonl")
                row = {"policy": policy, "seed": seed, "hit_rate": found["hit_rate"], "ttft_ms": found["ttft_ms"],
                       "e2e_ms": found["e2e_ms"], "tpot_ms": found["tpot_ms"]}
                rows.append(row)
                ttft, hits = row["ttft_ms"], row["hit_rate"]
                report.say(
                    f"  seed {seed} {policy:12} hits {100 * hits['measured']:.2f} % / {100 * hits['simulated']:.2f} %"
                    f"  TTFT mean {ttft['mean']['measured']:.1f} / {ttft['mean']['simulated']:.1f} ms"
                    f"  p95 {ttft['p95']['measured']:.1f} / {ttft['p95']['simulated']:.1f} ms (measured / simulated)")
    report.found["runs"] = rows
    means = {}
    for policy in POLICIES:
        own = [row for row in rows if row["policy"] == policy]
        points, width = interval([100 * row["hit_rate"]["difference"] for row in own])
        report.check(f"{policy}: hit rate within 1 point", abs(points) <= 1, points=points, interval=width)
        for figure in ["mean", "p95"]:
            error, width = interval([100 * row["ttft_ms"][figure]["relative_error"] for row in own])
            report.check(f"{policy}: TTFT {figure} within 10 %", abs(error) <= 10, percent=error, interval=width)
        means[policy] = [
            statistics.fmean(row["ttft_ms"]["mean"][side] for row in own) for side in ["measured", "simulated"]]
    orders = [sorted(POLICIES, key=lambda policy: means[policy][side]) for side in [0, 1]]
    report.check("the order of policies by mean TTFT is the same", orders[0] == orders[1],
                 measured=orders[0], simulated=orders[1])


def main():
    # Ended like an interrupt: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; all without any")
    parser.add_argument("--work", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--kvroute", type=lambda path: str(Path(path).resolve()), required=True)
    parser.add_argument("--port", type=int, default=8100, help="first of a hundred ports")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--index-requests", type=int, default=600)
    parser.add_argument("--fidelity-requests", type=int, default=600, help="of one run")
    parser.add_argument("--loaded-requests", type=int, default=120, help="of the run that calibrates under load")
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second over both instances")
    args = parser.parse_args()
    unknown = [check for check in args.checks if check not in CHECKS]
    if unknown:
        parser.error(f"no check {unknown[0]}; there are {', '.join(CHECKS)}")
    report = Report(args.work)
    for check in args.checks or CHECKS:
        report.found = {}
        report.say(f"== {check}: {globals()[check].__doc__}")
        globals()[check](args, report)
        report.write(check)
    if report.failed:
        sys.exit(f"{len(report.failed)} failed: " + "; ".join(report.failed))


if __name__ == "__main__":
    main()

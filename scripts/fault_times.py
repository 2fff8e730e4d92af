#!/usr/bin/env python3
"""Measures how fast the gateway reacts to an instance that fails, with real processes.

    cargo build --release && scripts/fault_times.py target/release/kvroute > docs/results/fault-times.txt

Four `kvroute mock` processes (answers of about 100 ms), `kvroute serve` with its defaults before them, 32 clients in a
closed loop that wait at most 2 s, half of them streaming. For each fault: answers per second before, in each second
after it, and after the instance is well again; failed requests by kind; when the gateway ejected the instance; since
when every half second had 90 % of the throughput that three of four instances had before; when the instance had its
first answer, and half its share, after it was well again. Needs Python 3 and nothing else.
"""

import atexit
import collections
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

CLIENTS, INSTANCES, PATIENCE_S = 32, 4, 2.0
BEFORE_S, DURING_S, AFTER_S = 3.0, 6.0, 8.0
MOCK = ["mock", "--instances", "1", "--time-scale", "2.5"]


def start(binary, args, stream):
    quiet = {**os.environ, "KVROUTE_LOG": "off"}
    process = subprocess.Popen([binary, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)
    atexit.register(process.kill)
    return process, re.findall(r"http://([0-9.:]+)", getattr(process, stream).readline())


def ask(addr, method, path, body=None, timeout=5.0):
    connection = http.client.HTTPConnection(addr, timeout=timeout)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.getheader("x-kvroute-instance"), response.read().decode()
    finally:
        connection.close()


class Load:
    def __init__(self, addr):
        self.addr, self.done, self.is_over = addr, [], False
        self.threads = [threading.Thread(target=self.client, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        turn, is_stream = 0, number % 2 == 0
        while not self.is_over:
            turn += 1
            body = {"messages": [{"role": "user", "content": f"client {number} asks for the {turn}. time"}],
                    "max_tokens": 10, "ignore_eos": True, "stream": is_stream}
            instance = None
            try:
                status, instance, text = ask(self.addr, "POST", "/v1/chat/completions", json.dumps(body), PATIENCE_S)
                kind = "ok" if status == 200 else str(status)
                if '"error":' in text:
                    kind = json.loads(text[text.rfind('{"error":'):].split("\n")[0])["error"]["type"]
            except TimeoutError:
                kind = "client time-out"
            except (OSError, http.client.HTTPException) as error:
                kind = type(error).__name__
            self.done.append((time.monotonic(), kind, instance))

    def stop(self):
        self.is_over = True
        for thread in self.threads:
            thread.join()


class Mock:
    def __init__(self, binary, port):
        self.binary, self.port = binary, port
        self.start()

    def start(self):
        self.process, (self.addr,) = start(self.binary, [*MOCK, "--port", str(self.port)], "stdout")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def faults(self, faults):
        ask(self.addr, "POST", "/mock/faults", json.dumps(faults))

    def signal(self, number):
        self.process.send_signal(number)


FAULTS = {
    "SIGKILL, restarted": (lambda mock: mock.kill(), lambda mock: mock.start()),
    "SIGSTOP, SIGCONT": (lambda mock: mock.signal(signal.SIGSTOP), lambda mock: mock.signal(signal.SIGCONT)),
    "engine hangs, /health fine": (lambda mock: mock.faults({"hang": True}), lambda mock: mock.faults({})),
    "answers 500": (lambda mock: mock.faults({"error_rate": 1.0}), lambda mock: mock.faults({})),
    "dies in mid-stream": (lambda mock: mock.faults({"cut_after_tokens": 3}), lambda mock: mock.faults({})),
}


def measure(binary, name, begin, end, port):
    mocks = [Mock(binary, port + i) for i in range(INSTANCES)]
    urls = [f"http://{mock.addr}" for mock in mocks]
    args = ["serve", "--instance", *urls, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    gateway, (addr, admin) = start(binary, args, "stderr")
    try:
        while ask(addr, "GET", "/ready")[0] != 200:
            time.sleep(0.05)
        load, victim, ups = Load(addr), mocks[0], []
        time.sleep(1.0 + BEFORE_S)
        broken = time.monotonic()
        begin(victim)
        mended = None
        while (now := time.monotonic()) < broken + DURING_S + AFTER_S:
            if mended is None and now >= broken + DURING_S:
                end(victim)
                mended = time.monotonic()
            listed = json.loads(ask(admin, "GET", "/instances")[2])
            ups.append((time.monotonic(), next(it["up"] for it in listed if it["name"] == victim.addr)))
            time.sleep(0.02)
        load.stop()
    finally:
        gateway.terminate()
        gateway.wait()
        for mock in mocks:
            mock.kill()
    report(name, load.done, ups, victim.addr, broken, mended)


def report(name, done, ups, victim, broken, mended):
    def rate(start, end, who=None):
        answers = [1 for at, kind, by in done if kind == "ok" and start <= at < end and who in (None, by)]
        return len(answers) / (end - start)

    def first(times, since):
        return next((f"{at - since:.2f} s" for at in times), "never")

    before = rate(broken - BEFORE_S, broken)
    failed = collections.Counter(kind for _, kind, _ in done if kind != "ok")
    last = max((at for at, kind, _ in done if kind != "ok"), default=None)
    steps = [broken + 0.1 * step for step in range(int(DURING_S * 10))]
    enough = 0.9 * before * (INSTANCES - 1) / INSTANCES
    low = [at for at in steps if rate(at, at + 0.5) < enough]
    back = f"{max(low) + 0.1 - broken:.1f} s" if low else "the start"
    by_victim = [at for at, kind, by in done if kind == "ok" and by == victim and at > mended]
    share = [at for at in by_victim if rate(at - 0.5, at, victim) >= 0.5 * before / INSTANCES]
    seconds = " ".join(f"{rate(broken + s, broken + s + 1):.0f}" for s in range(int(DURING_S)))
    print(f"{name}\n  answers/s before: {before:.0f}; in each second of the fault: {seconds}; "
          f"in the last 2 s: {rate(mended + AFTER_S - 2, mended + AFTER_S):.0f}")
    print(f"  failed: {dict(failed) or 'none'}" + (f", the last {last - broken:.2f} s after" if last else ""))
    print(f"  ejected after {first((at for at, up in ups if not up and at > broken), broken)}; "
          f"at least 90 % of three instances' throughput from {back} on")
    print(f"  well again: in use after {first((at for at, up in ups if up and at > mended), mended)}, "
          f"first answer after {first(by_victim, mended)}, half its share after {first(share, mended)}", flush=True)


def main():
    binary = sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: fault_times.py target/release/kvroute")
    print(f"{CLIENTS} clients (time-out {PATIENCE_S:.0f} s, half of them streaming), {INSTANCES} instances, defaults\n")
    for number, (name, (begin, end)) in enumerate(FAULTS.items()):
        measure(binary, name, begin, end, 21_300 + 10 * number)


main()

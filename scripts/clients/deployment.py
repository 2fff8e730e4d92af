"""The gateway and the two mock instances before which run.sh started it, and what they count."""

import json
import os
import re
import time
import urllib.request

GATEWAY = os.environ["KVROUTE_GATEWAY"]
ADMIN = os.environ["KVROUTE_ADMIN"]
MOCKS = os.environ["KVROUTE_MOCKS"].split()
BINARY = os.environ["KVROUTE_BINARY"]


def fetch(url, data=None):
    with urllib.request.urlopen(url, data, timeout=10) as answer:
        return answer.read().decode()


def total(page, metric, **labels):
    """Sum of a metric's series that have these labels."""
    series = re.findall(rf"^{re.escape(metric)}(\{{.*\}})? (\S+)$", page, re.MULTILINE)
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(float(value) for found, value in series if all(part in found for part in wanted))


def in_flight():
    return total(fetch(f"{ADMIN}/metrics"), "kvroute_in_flight")


def running():
    return sum(total(fetch(f"{mock}/metrics"), "vllm:num_requests_running") for mock in MOCKS)


def seen():
    """Requests that the gateway's load readings show, which are a refresh behind; `None` before the first."""
    instances = json.loads(fetch(f"{ADMIN}/instances"))
    loads = [load for it in instances for load in (it["waiting"], it["running"])]
    return None if None in loads else sum(loads)


def eventually(what, is_so, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def nothing_is_left():
    eventually("the gateway has nothing in flight", lambda: in_flight() == 0)
    eventually("no instance runs a request", lambda: running() == 0)
    eventually("the gateway has read that", lambda: seen() == 0)

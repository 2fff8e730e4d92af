#!/usr/bin/env python3
"""Follow the KV-cache events of a vLLM instance, or of `kvroute mock --kv-events`, with pyzmq.

    python -m venv venv && venv/bin/pip install pyzmq==27.1.0 msgpack==1.1.2
    venv/bin/python scripts/clients/kv_events.py URL [--count N] [--check]

URL is the instance's HTTP address; the endpoints come from its GET /kv_event_sources. Prints one JSON
object an event, and ends after N batches. First asks for a replay of everything the instance still has.
--check recomputes the block hashes (sha256_cbor or sha256) from the token ids and fails on a wrong one,
on a gap in the sequence numbers, and on a replay that does not end.
"""

import argparse
import hashlib
import json
import pickle
import struct
import sys
import urllib.parse
import urllib.request

import msgpack
import zmq

TIMEOUT_MS = 30_000
END = b"\xff" * 8


def cbor(x):
    """Canonical CBOR of the few types in a block: bytes, text, ints, None, tuples."""

    def head(major, n):
        for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if n < 24:
                return bytes([major << 5 | n])
            if n < 1 << 8 * size:
                return bytes([major << 5 | info]) + n.to_bytes(size, "big")
        raise ValueError(n)

    if x is None:
        return b"\xf6"
    if isinstance(x, bytes):
        return head(2, len(x)) + x
    if isinstance(x, str):
        return head(3, len(x.encode())) + x.encode()
    if isinstance(x, int):
        return head(0, x)
    return head(4, len(x)) + b"".join(map(cbor, x))


def digest(algo, x):
    data = cbor(x) if algo == "sha256_cbor" else pickle.dumps(x, protocol=5)
    return hashlib.sha256(data).digest()


class Checker:
    """Knows the full digest of each block seen, by the hash that events carry."""

    def __init__(self):
        self.full = {}
        self.algo = None
        self.checked = 0

    def stored(self, event):
        hashes, size = event["block_hashes"], event["block_size"]
        assert len(event["token_ids"]) == size * len(hashes), event
        for algo in [self.algo] if self.algo else ["sha256", "sha256_cbor"]:
            parent = event["parent_block_hash"]
            parent = self.full[parent] if parent is not None else digest(algo, "vllm-none-hash")
            found = {}
            for i, given in enumerate(hashes):
                extra = (event.get("extra_keys") or [None] * len(hashes))[i]
                extra = tuple(("cache_salt", salt) for salt in extra) if extra else None
                parent = digest(algo, (parent, tuple(event["token_ids"][i * size:(i + 1) * size]), extra))
                if given not in (parent, int.from_bytes(parent[-8:], "big")):
                    break
                found[given] = parent
            else:
                self.algo = algo
                self.full.update(found)
                self.checked += len(found)
                return
        sys.exit(f"wrong hash in {event}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=0, help="end after so many batches")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with urllib.request.urlopen(args.url + "/kv_event_sources", timeout=10) as answer:
        source = json.load(answer)["0"]
    host = urllib.parse.urlparse(args.url).hostname
    context = zmq.Context()

    def connect(kind, endpoint):
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, source["topic"].encode())
        socket.connect(endpoint.replace("*", host))
        return socket

    live = connect(zmq.SUB, source["endpoint"])
    replay = connect(zmq.DEALER, source["replay_endpoint"])
    checker, batches, following = Checker(), 0, None

    def take(topic, seq, payload):
        nonlocal batches, following
        assert topic == source["topic"].encode(), topic
        seq = struct.unpack(">Q", seq)[0]
        if following is not None and seq < following:
            return
        if args.check:
            assert seq == (following or 0), f"batch {seq} after {following}"
        following = seq + 1
        ts, events, rank = msgpack.unpackb(payload, raw=False)
        for event in events:
            if args.check and event["type"] == "BlockStored":
                checker.stored(event)
            text = json.dumps({"seq": seq, "ts": ts, "rank": rank, **event}, default=lambda b: b.hex())
            print(text, flush=True)
        batches += 1

    replay.send_multipart([b"", (0).to_bytes(8, "big")])
    while True:
        empty, topic, seq, payload = replay.recv_multipart()
        if seq == END:
            break
        take(topic, seq, payload)
    while not args.count or batches < args.count:
        take(*live.recv_multipart())
    if args.check:
        print(f"{batches} batches, {checker.checked} block hashes checked ({checker.algo})", file=sys.stderr)


if __name__ == "__main__":
    main()

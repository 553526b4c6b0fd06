#!/usr/bin/env python3
"""hadal serve for a while at twice what it can do, with clients that leave, then SIGTERM (make soak).

    tests/server/soak.py [SECONDS]        900 by default

Requests come by a Poisson process at twice the rate that a closed loop reached. Each must end as
exactly one of finished, cancelled (by its client) or rejected (429, 503), the server's counters and
its log must say the same, memory must return to where it was, and the drain must keep its limit.
"""
# SPDX-License-Identifier: Apache-2.0
import collections
import json
import pathlib
import random
import signal
import socket
import sys
import tempfile
import threading
import time

import harness
from harness import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DRAIN_SECONDS = 20
WORDS = "the quick brown fox jumps over the lazy dog; some more words are here".split()


def make_request(rng, forms):
    """A route and a body: whole or streamed, one choice or two, free or (forms) held to a form."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    if rng.random() < 0.3:  # a prefix that many share
        text = "some more words are here " * 12 + text
    body = {"max_tokens": rng.randint(1, 160), "temperature": rng.choice([0, 0.8, 1.2]),
            "seed": rng.randrange(1000), "stream": rng.random() < 0.7, "ignore_eos": True}
    if rng.random() < 0.15:
        body["n"] = 2
    if rng.random() < 0.1:
        body["logprobs"] = 2
    kind = rng.random()
    if kind < 0.15 and forms:
        body["guided_regex"] = "[a-z ]{4,120}"
        body.pop("ignore_eos")
    elif kind < 0.3:
        body["stop"] = ["ab", "e"]
    if rng.random() < 0.4:
        body.pop("ignore_eos", None)
    if rng.random() < 0.3 and "logprobs" not in body:
        return CHAT, {**body, "messages": [{"role": "user", "content": text}]}
    return COMPLETIONS, {**body, "prompt": text}


class Load:
    def __init__(self, server, forms):
        self.server, self.forms = server, forms
        self.outcomes = collections.Counter()
        self.wrong = []
        self.finished_ids, self.rejected_ids = [], []
        self.lock = threading.Lock()
        self.threads = []
        self.num_started = 0

    def end(self, outcome, request_id=None):
        with self.lock:
            self.outcomes[outcome] += 1
            if outcome == "finished":
                self.finished_ids.append(request_id)
            elif outcome.startswith("rejected") and request_id:
                self.rejected_ids.append(request_id)

    def one(self, rng, may_leave=True):
        path, body = make_request(rng, self.forms)
        leaves = may_leave and rng.random() < 0.25
        connection = self.server.connect()
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            if leaves and rng.random() < 0.5:
                time.sleep(rng.random() * 0.5)
                return self.end("cancelled")
            response = connection.getresponse()
            request_id = response.getheader("X-Request-Id")
            if response.status in (429, 503):
                error = json.loads(response.read())["error"]["code"]
                assert error in ("queue_full", "draining"), error
                return self.end(f"rejected {response.status}", request_id)
            assert response.status == 200, (response.status, response.read())
            if leaves:
                response.read(rng.randint(1, 400))
                return self.end("cancelled")
            if body["stream"]:
                last = None
                for last in harness.events(response):
                    assert "error" not in last, last
                assert last["choices"][0]["finish_reason"] in ("stop", "length"), last
            else:
                for choice in json.loads(response.read())["choices"]:
                    assert choice["finish_reason"] in ("stop", "length"), choice
            return self.end("finished", request_id)
        except (ConnectionError, socket.timeout) as error:
            # Only a server that has gone away after its drain may refuse a connection.
            return self.end("refused" if self.server.process.poll() is not None or self.draining
                            else f"wrong: {error!r}")
        except Exception as error:  # pylint: disable=broad-except
            with self.lock:
                self.wrong.append(repr(error))
            return self.end("wrong")
        finally:
            connection.close()

    draining = False

    def open_loop(self, rate, seconds, seed):
        rng = random.Random(seed)
        start = due = time.monotonic()
        while due < start + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            thread = threading.Thread(target=self.one, args=(random.Random(rng.random()),))
            thread.start()
            self.num_started += 1
            self.threads.append(thread)
            self.threads = [t for t in self.threads if t.is_alive()]
            due += rng.expovariate(rate)

    def join(self):
        for thread in self.threads:
            thread.join()
        ended = sum(self.outcomes.values())
        assert ended == self.num_started, (ended, self.num_started)


def resident(server):
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def wait_idle(server):
    for _ in range(600):
        metrics = server.metrics()
        if metrics["num_requests_running"] + metrics["num_requests_waiting"] == 0:
            return metrics
        time.sleep(0.1)
    raise AssertionError("the server does not become idle")


def capacity(server, forms, seconds=10.0):
    """Requests per second of a closed loop that keeps all sequences busy."""
    load, end = Load(server, forms), time.monotonic() + seconds

    def client(seed):
        rng = random.Random(seed)
        while time.monotonic() < end:
            load.one(rng, may_leave=False)
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not load.wrong, load.wrong[:3]
    return load.outcomes["finished"] / seconds


def totals(metrics):
    ended = {reason: int(metrics[f'request_success_total{{finished_reason="{reason}"}}'])
             for reason in ("stop", "length", "cancelled", "error")}
    return {**ended, "submitted": int(metrics["requests_submitted_total"]),
            "rejected": int(metrics["requests_rejected_total"])}


def log_lines(server):
    """{request id: outcomes} of what the server logged."""
    lines = collections.defaultdict(list)
    for line in server.errors().splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            lines[entry["id"]].append(entry.get("outcome") or entry["status"])
    return lines


def main(seconds):
    with Server("--max-seqs", "4", "--max-queue", "8", "--context", "1024", "--cache-tokens", "2048",
                "--speculate", "1", "--drain-seconds", str(DRAIN_SECONDS)) as server:
        missing = harness.why_no_forms(server)
        if missing:
            print(f"soak: without forms: {missing}", flush=True)
        rate = 2 * capacity(server, forms=missing is None)
        before, base = totals(wait_idle(server)), resident(server)
        print(f"soak: {rate:.1f} requests/s for {seconds} s, twice the capacity; {base:.0f} MiB",
              flush=True)
        load = Load(server, forms=missing is None)
        load.open_loop(rate, seconds, seed=1)
        load.join()
        after, memory = totals(wait_idle(server)), resident(server)
        print(f"soak: {dict(load.outcomes)}; {memory:.0f} MiB", flush=True)
        assert not load.wrong, load.wrong[:3]
        change = {key: after[key] - before[key] for key in after}
        print(f"soak: the server counted {change}", flush=True)
        assert change["error"] == 0
        assert change["submitted"] == sum(change[k] for k in ("stop", "length", "cancelled"))
        assert not any(k.startswith("wrong") or k == "refused" for k in load.outcomes)
        assert memory < base * 1.25 + 16, (base, memory)
        metrics = server.metrics()
        assert metrics["kv_cache_usage_perc"] == 0

        # The drain, in the middle of the same load.
        last = Load(server, forms=missing is None)
        feeder = threading.Thread(target=last.open_loop, args=(rate, 8, 2))
        feeder.start()
        time.sleep(4)
        last.draining = True
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(DRAIN_SECONDS + 10)
        drained = time.monotonic() - start
        feeder.join()
        last.join()
        print(f"soak: drained in {drained:.1f} s of {DRAIN_SECONDS}; {dict(last.outcomes)}", flush=True)
        assert status == 0, status
        assert drained < DRAIN_SECONDS + 3
        assert not last.wrong, last.wrong[:3]

        # One line of the log for each request, and it says what its client saw.
        lines = log_lines(server)
        twice = {i: outcomes for i, outcomes in lines.items() if len(outcomes) != 1}
        assert not twice, list(twice.items())[:3]
        for side in (load, last):
            for request_id in side.finished_ids:
                assert lines[request_id] == ["done"], (request_id, lines[request_id])
            for request_id in side.rejected_ids:
                # One that waited for its form to be compiled is logged by its reason.
                why = lines[request_id][0]
                assert why in (429, 503) or "busy" in why or "shutting down" in why, (request_id, why)
        print(f"soak: passed; {len(lines)} requests in the log, each once")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = harness.make_model(folder)
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 900)

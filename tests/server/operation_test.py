#!/usr/bin/env python3
"""hadal serve under stress: overload, clients that leave, hostile bytes, SIGTERM."""
# SPDX-License-Identifier: Apache-2.0
import json
import os
import random
import re
import signal
import socket
import tempfile
import threading
import time
import unittest

import harness
from harness import Server

COMPLETIONS = "/v1/completions"
# Long enough to be still running when a test looks again.
LONG = {"prompt": "the quick brown fox", "max_tokens": 4000, "temperature": 0, "ignore_eos": True}


def wait_until(condition, seconds=20):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def idle(server):
    metrics = server.metrics()
    return metrics["num_requests_running"] + metrics["num_requests_waiting"] == 0


class Load(unittest.TestCase):
    def test_a_full_queue_is_429_and_clients_that_leave_make_room(self):
        with Server("--max-seqs", "1", "--max-queue", "1", "--context", "8000") as server:
            open_streams = [server.open_stream(COMPLETIONS, LONG) for _ in range(2)]
            for _, response in open_streams:
                self.assertEqual(response.status, 200)
            status, headers, body = server.post(COMPLETIONS, {"prompt": "x"})
            self.assertEqual((status, headers["Retry-After"]), (429, "1"))
            self.assertEqual(body["error"]["code"], "queue_full")
            for connection, _ in open_streams:
                connection.close()
            for _, response in open_streams:
                response.close()
            self.assertTrue(wait_until(lambda: idle(server)))
            self.assertEqual(server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2})[0], 200)
            metrics = server.metrics()
            self.assertEqual(metrics['request_success_total{finished_reason="cancelled"}'], 2)
            self.assertEqual(metrics["requests_rejected_total"], 1)
            self.assertEqual(metrics["requests_submitted_total"], 3)

    def test_a_client_that_does_not_read_holds_nobody_up(self):
        with Server("--max-seqs", "4", "--context", "8000") as server:
            idle = socket.create_connection(("127.0.0.1", server.port))
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            body = json.dumps({**LONG, "stream": True, "n": 2})
            idle.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            for _ in range(3):
                status, _, answer = server.post(
                    COMPLETIONS, {"prompt": "x", "max_tokens": 3, "ignore_eos": True})
                self.assertEqual((status, answer["usage"]["completion_tokens"]), (200, 3))
            idle.close()

    def test_sigterm_lets_what_runs_finish_and_refuses_the_rest(self):
        with Server("--max-seqs", "2", "--context", "8000", "--drain-seconds", "60") as server:
            body = {**LONG, "max_tokens": 600}
            connection, response = server.open_stream(COMPLETIONS, body)
            late = server.connect()
            late.connect()
            response.readline()
            server.process.send_signal(signal.SIGTERM)
            self.assertTrue(wait_until(lambda: server.get("/ready")[0] == 503))
            status, headers, answer = server.post(COMPLETIONS, {"prompt": "x"})
            self.assertEqual((status, answer["error"]["code"]), (503, "draining"))
            last = None
            for last in harness.events(response):
                pass
            self.assertEqual(last["choices"][0]["finish_reason"], "length")
            connection.close()
            self.assertEqual(server.process.wait(20), 0)

    def test_a_drain_ends_at_its_limit(self):
        with Server("--context", "8000", "--drain-seconds", "0.3") as server:
            connection, response = server.open_stream(COMPLETIONS, {**LONG, "max_tokens": 7000})
            response.readline()
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            text = response.read().decode()
            self.assertIn("the server shut down before the answer was complete", text)
            self.assertEqual(server.process.wait(20), 0)
            self.assertLess(time.monotonic() - start, 10)
            connection.close()

    def test_counters_agree_after_random_load_and_cancels(self):
        with Server("--max-seqs", "3", "--max-queue", "3", "--context", "512", "--cache-tokens",
                    "640") as server:
            outcomes = {"done": 0, "gone": 0, "busy": 0}
            lock = threading.Lock()

            def client(seed):
                rng = random.Random(seed)
                for _ in range(6):
                    body = {"prompt": "the quick brown fox " * rng.randint(1, 8), "seed": seed,
                            "max_tokens": rng.randint(1, 60), "ignore_eos": True}
                    connection, response = server.open_stream(COMPLETIONS, body)
                    if response.status == 429:
                        kind = "busy"
                    elif rng.random() < 0.4:
                        response.readline()
                        kind = "gone"
                    else:
                        for _ in harness.events(response):
                            pass
                        kind = "done"
                    response.close()
                    connection.close()
                    with lock:
                        outcomes[kind] += 1
            threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertTrue(wait_until(lambda: idle(server)))
            metrics = server.metrics()
            self.assertEqual(sum(outcomes.values()), 48)
            self.assertEqual(metrics["requests_rejected_total"], outcomes["busy"])
            ended = {reason: metrics[f'request_success_total{{finished_reason="{reason}"}}']
                     for reason in ("stop", "length", "cancelled", "error")}
            self.assertEqual(sum(ended.values()), metrics["requests_submitted_total"])
            self.assertEqual(ended["error"], 0)
            self.assertLessEqual(ended["cancelled"], outcomes["gone"])
            self.assertEqual(metrics["kv_cache_usage_perc"], 0)


class Hostile(unittest.TestCase):
    def ask(self, server, data, half_close=False):
        """What the server answers to these bytes, until it closes or is silent."""
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.settimeout(3)
            answer = b""
            try:
                s.sendall(data)
                if half_close:
                    s.shutdown(socket.SHUT_WR)
                while part := s.recv(65536):
                    answer += part
                    if b"\r\n\r\n" in answer and answer.endswith(b"}"):
                        break
            except (TimeoutError, ConnectionError):
                pass
            return answer

    def test_hostile_requests(self):
        with Server("--max-body", "20000", "--read-seconds", "1", "--max-connections", "40") as server:
            post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            cases = [
                (b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 40000 + b"\r\n\r\n", b"431"),
                (post + b"Content-Length: 30000\r\n\r\n", b"413"),
                (post + b"Transfer-Encoding: chunked\r\n\r\n" +
                 b"".join(b"1000\r\n" + b" " * 4096 + b"\r\n" for _ in range(6)), b"413"),
                (post + b"Content-Length: -5\r\n\r\n", b"400"),
                (post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", b"400"),
                (post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
                (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
                (b"GET / HTTP/9.9\r\n\r\n", b"400"),
                (b"GARBAGE\r\n\r\n", b"400"),
                (post + b"Expect: miracle\r\nContent-Length: 2\r\n\r\n{}", b"417"),
                (post + b"Content-Length: 3\r\n\r\n\xff\xfe\x00", b"400"),
                (b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
                (b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
                (b"GET http://other/health HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
            ]
            for data, want in cases:
                self.assertIn(b" " + want + b" ", self.ask(server, data).split(b"\r\n")[0], data[:80])
            # Half a request, then silence or an end: closed without an answer, in time.
            for data in (b"", b"POST /v1/comp", post, post + b"Content-Length: 100\r\n\r\n{"):
                start = time.monotonic()
                self.assertEqual(self.ask(server, data, half_close=True), b"")
                self.assertLess(time.monotonic() - start, 2.5)
                if data:
                    self.assertEqual(self.ask(server, data), b"")
                    self.assertLess(time.monotonic() - start, 6)
            # Slowloris: a byte now and then does not put off the end.
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                start = time.monotonic()
                try:
                    for byte in b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                        s.sendall(bytes([byte]))
                        time.sleep(0.05)
                except ConnectionError:
                    pass
                self.assertLess(time.monotonic() - start, 5)
            # Pipelined requests are answered in order.
            one = b"GET /v1/models/base HTTP/1.1\r\nHost: x\r\n\r\n"
            two = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                s.sendall(one + two)
                answer = b""
                while part := s.recv(65536):
                    answer += part
            self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answer), [b"200", b"404"])
            self.assertEqual(server.get("/health")[0], 200)
            # Too many connections: 503, and room again once they are closed.
            many = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
            time.sleep(0.2)
            answers = 0
            for s in many[40:]:
                s.settimeout(2)
                answers += b" 503 " in s.recv(1000)
            self.assertGreaterEqual(answers, 18)
            for s in many:
                s.close()
            self.assertTrue(wait_until(lambda: server.get("/health")[0] == 200))

    def test_random_bytes_and_broken_requests(self):
        seconds = float(os.environ.get("HADAL_TEST_FUZZ_SECONDS", "4"))
        with Server("--read-seconds", "1", "--max-body", "5000", "--context", "256") as server:
            rng = random.Random(7)
            good = json.dumps({"prompt": "the quick", "max_tokens": 3, "stream": True}).encode()
            request = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(good)) + good
            before, limit, count = None, time.monotonic() + seconds, 0
            while time.monotonic() < limit:
                data = bytearray(request)
                for _ in range(rng.randint(0, 6)):
                    at = rng.randrange(len(data))
                    what = rng.randrange(4)
                    if what == 0:
                        data[at] = rng.randrange(256)
                    elif what == 1:
                        del data[at:at + rng.randint(1, 20)]
                    elif what == 2:
                        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
                    else:
                        data[at:at] = data[at:at + 30]
                    data = data or bytearray(b"x")
                with socket.create_connection(("127.0.0.1", server.port)) as s:
                    s.settimeout(0.05)
                    try:
                        s.sendall(bytes(data))
                        if rng.random() < 0.5:
                            s.recv(4096)
                    except (TimeoutError, ConnectionError):
                        pass
                count += 1
                if count == 50:
                    before = self.memory(server)
            self.assertGreater(count, 50)
            self.assertTrue(wait_until(lambda: idle(server)))
            self.assertEqual(server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2})[0], 200)
            # Memory returns to its base: 8 MiB are for what malloc keeps. A sanitizer keeps what is
            # freed, to see whether it is used.
            if not harness.is_sanitized():
                self.assertLess(self.memory(server), before + (8 << 20))

    @staticmethod
    def memory(server):
        with open(f"/proc/{server.process.pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        raise RuntimeError("no VmRSS")


class Starting(unittest.TestCase):
    def test_what_keeps_it_from_serving_is_a_sentence(self):
        with Server() as server:
            for options, message in (
                    (["--port", str(server.port)],
                     f"cannot listen on 127.0.0.1:{server.port}: Address already in use"),
                    (["--host", "nowhere"],
                     "--host is nowhere; give an address such as 127.0.0.1 or 0.0.0.0"),
                    (["--context", "100000000"], None),
                    (["--cache-tokens", "100"], None),
                    (["--cache-tokens", "100000000000"], None),
                    (["--api-key-file", "/nothing"], "cannot read /nothing"),
                    (["--chat-template", "other"], None)):
                with self.assertRaises(RuntimeError) as failed:
                    harness.hadal("serve", "--model", Server.model, "--quiet", *options)
                lines = str(failed.exception).strip().splitlines()
                self.assertEqual(len(lines), 1, lines)
                self.assertIn(": hadal: ", lines[0])
                if message:
                    self.assertTrue(lines[0].endswith(f"hadal: {message}"), lines[0])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = harness.make_model(folder)
        unittest.main()

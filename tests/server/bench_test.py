#!/usr/bin/env python3
"""hadal bench serve: against hadal serve, and against servers whose times and faults are known."""
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree

import harness
from harness import Server

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def bench(url, *options, env=None):
    """The row, or what it says on stderr."""
    done = subprocess.run([harness.HADAL, "bench", "serve", "--url", url, *options],
                          capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, **(env or {})})
    return (json.loads(done.stdout) if done.stdout else None), done.stderr


def chunked(text):
    return f"{len(text.encode()):x}\r\n{text}\r\n".encode()


@contextlib.contextmanager
def fake(answer):
    """A server that reads a request and lets answer(connection, header, body) reply."""
    listener = socket.create_server(("127.0.0.1", 0))
    bodies = []

    def serve(connection):
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, body = data.split(b"\r\n\r\n", 1)
            length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n")
                           if line.lower().startswith(b"content-length")), 0)
            while len(body) < length:
                body += connection.recv(65536)
            bodies.append((head.decode(), json.loads(body) if body else None))
            with contextlib.suppress(OSError):
                answer(connection, *bodies[-1])

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", bodies
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def text_event(text, **more):
    return "data: " + json.dumps({"choices": [{"index": 0, "text": text}], **more}) + "\n\n"


def refusal(status, body):
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class Times(unittest.TestCase):
    def test_times_of_a_server_that_sleeps(self):
        def answer(connection, _head, _body):
            connection.sendall((HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode())
            time.sleep(0.2)
            for i in range(5):
                if i > 0:
                    time.sleep(0.05)
                connection.sendall(chunked(text_event("ab")))
            time.sleep(0.1)
            usage = {"completion_tokens": 11, "prompt_tokens": 7,
                     "prompt_tokens_details": {"cached_tokens": 3}}
            end = "data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n"
            # A proxy may cut an event anywhere, and [DONE] too.
            for part in (end[:9], end[9:30], end[30:], "data: [DO", "NE]\n\n"):
                connection.sendall(chunked(part))
            connection.sendall(b"0\r\n\r\n")
        with fake(answer) as (url, bodies):
            row, errors = bench(url, "--model", "m", "--requests", "4", "--concurrency", "2",
                                "--prompt-tokens", "5", "--shared-tokens", "2", "--vocab", "50",
                                "--extra-body", '{"top_k": 3}')
        self.assertEqual(errors, "")
        self.assertEqual((row["completed"], row["failed"], row["errors"]), (4, 0, {}))
        self.assertEqual((row["output_tokens"], row["prompt_tokens"], row["cached_tokens"],
                          row["parts"], row["most_open"]), (44, 28, 12, 20, 2))
        for name, low in (("ttft_ms", 200), ("tpot_ms", 20), ("itl_ms", 50), ("e2e_ms", 500)):
            self.assertGreaterEqual(row[name]["p50"], 0.9 * low, name)
            self.assertLess(row[name]["p50"], 3 * low, name)
            self.assertLessEqual(row[name]["p50"], row[name]["p99"])
        self.assertGreater(row["seconds"], 1.0)  # two after each other
        self.assertAlmostEqual(row["output_tokens_per_s"], 44 / row["seconds"], places=6)
        prompts = [body["prompt"] for _, body in bodies]
        self.assertEqual({tuple(p[:2]) for p in prompts}, {tuple(prompts[0][:2])})
        self.assertEqual(len({tuple(p) for p in prompts}), 4)
        self.assertTrue(all(1 <= i < 50 for p in prompts for i in p))
        for head, body in bodies:
            self.assertTrue(head.startswith("POST /v1/completions HTTP/1.1"))
            self.assertEqual({k: body[k] for k in ("model", "max_tokens", "ignore_eos", "top_k")},
                             {"model": "m", "max_tokens": 64, "ignore_eos": True, "top_k": 3})

    def test_arrivals(self):
        starts = []

        def answer(connection, _head, _body):
            starts.append(time.monotonic())
            time.sleep(0.3)
            connection.sendall((HEAD + "\r\n" + text_event("x") + "data: [DONE]\n\n").encode())
        with fake(answer) as (url, _):
            row, _ = bench(url, "--model", "m", "--arrivals", "fixed", "--rate", "20", "--requests",
                           "10")
            gaps = [b - a for a, b in zip(starts, starts[1:])]
            self.assertEqual(row["completed"], 10)
            self.assertGreater(row["most_open"], 2)  # an open loop does not wait for answers
            self.assertAlmostEqual(sum(gaps), 9 / 20, delta=0.2)
            # Poisson arrivals are those of the seed, and not evenly spaced.
            starts.clear()
            row, _ = bench(url, "--model", "m", "--arrivals", "poisson", "--rate", "20",
                           "--requests", "12", "--seed", "1", "--concurrency", "2")
            self.assertEqual((row["completed"], row["most_open"]), (12, 2))
            # Held back by the limit, so some began late, and it says so.
            self.assertGreater(row["latest_start_s"], 0.1)


class Faults(unittest.TestCase):
    def test_what_goes_wrong_is_counted_by_its_reason(self):
        answers = [
            refusal(500, '{"error": {"text": "broken"}}'),
            refusal(429, '{"error": {"message": "too many"}}'),
            refusal(401, '{"object": "error", "message": "no key"}'),
            (HEAD + "\r\n" + text_event("x")).encode(),
            (HEAD + "\r\ndata: {nonsense\n\n").encode(),
            (HEAD + '\r\ndata: {"error": {"message": "the engine fell"}}\n\n').encode(),
            (HEAD + "Content-Length: 999\r\n\r\n" + text_event("x")).encode(),
            b"SSH-2.0-OpenSSH_9\r\n\r\n",
            b"",
            (HEAD + "\r\n" + text_event("x") + "data: [DONE]\n\n").encode(),
        ]
        want = {"status 500: no message": 1, "status 429: too many": 1, "status 401: no key": 1,
                "the stream ended before [DONE]": 1,
                "an event of the stream is no JSON object": 1, "in the stream: the engine fell": 1,
                "the connection was lost in the answer": 1,
                "the server does not answer in HTTP/1.1: bad version": 1,
                "the connection was closed before an answer came": 1}
        order = iter(answers)
        with fake(lambda connection, *_: connection.sendall(next(order))) as (url, _):
            row, _ = bench(url, "--model", "m", "--requests", "10", "--concurrency", "1")
        self.assertEqual(row["errors"], want)
        self.assertEqual((row["completed"], row["failed"]), (1, 9))

    def test_a_server_that_hangs_is_given_up(self):
        with fake(lambda *_: time.sleep(5)) as (url, _):
            row, errors = bench(url, "--model", "m", "--requests", "2", "--timeout", "0.3")
        self.assertEqual(row["errors"], {"the answer took longer than the limit": 2})
        self.assertEqual(errors, "hadal: no request was answered; the first error: the answer took "
                         "longer than the limit\n")

    def test_refusals(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = pathlib.Path(folder, "lines")
            lines.write_text('{"prompt": "x"}\n{"text": "x"}\n')
            empty = pathlib.Path(folder, "empty")
            empty.write_text("\n")
            closed = socket.create_server(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            closed.close()
            here = f"http://127.0.0.1:{port}"
            cases = [
                ("https://x", [], "the URL https://x does not begin with http://; for https put a "
                 "proxy in front"),
                ("http://", [], "the URL http:// names no host and port; write http://HOST:PORT"),
                ("http://x:y", [], "the URL http://x:y names no host and port; write "
                 "http://HOST:PORT"),
                (here, [], f"cannot connect to {here}/v1/models: Connection refused"),
                (here, ["--model", "m", "--requests", "1"], "no request was answered; the first "
                 "error: cannot connect: Connection refused"),
                (here, ["--arrivals", "often"], "--arrivals is often; allowed: closed, fixed, "
                 "poisson"),
                (here, ["--endpoint", "x"], "--endpoint is x; allowed: completions, chat"),
                (here, ["--rate", "0"], "--rate is 0; allowed: above 0 to 1000000"),
                (here, ["--requests", "0"], "--requests is 0; allowed: 1 to 1000000"),
                (here, ["--shared-tokens", "128"], "--shared-tokens is 128; allowed: 0 to "
                 "--prompt-tokens - 1"),
                (here, ["--model", "m", "--jsonl", str(lines)], f"{lines} line 2 is no object with "
                 "either \"prompt\" or \"messages\""),
                (here, ["--model", "m", "--jsonl", str(empty)], f"{empty} has no line"),
                (here, ["--model", "m", "--jsonl", "nowhere"], "cannot read nowhere"),
                (here, ["--model", "m", "--extra-body", "[]"], "--extra-body is no JSON object"),
            ]
            for url, options, message in cases:
                self.assertEqual(bench(url, *options)[1], f"hadal: {message}\n", (url, options))


class Hadal(unittest.TestCase):
    """Against hadal serve itself."""

    @classmethod
    def setUpClass(cls):
        cls.context = Server("--max-seqs", "4", "--max-queue", "0", "--context", "1024",
                             env={"HADAL_API_KEY": "secret-key"})
        cls.server = cls.context.__enter__()
        cls.url = f"http://127.0.0.1:{cls.server.port}/v1/"

    @classmethod
    def tearDownClass(cls):
        cls.context.__exit__()

    def bench(self, *options, key="secret-key"):
        return bench(self.url, *options, env={"HADAL_API_KEY": key})

    def test_counts_agree_with_the_server(self):
        before = self.server.metrics()
        row, errors = self.bench("--requests", "12", "--concurrency", "4", "--prompt-tokens", "200",
                                 "--shared-tokens", "128", "--output-tokens", "20")
        after = self.server.metrics()
        self.assertEqual(errors, "")
        self.assertEqual((row["model"], row["completed"], row["output_tokens"]), ("base", 12, 240))
        self.assertEqual(row["prompt_tokens"], 12 * 200)
        # All but those that ran beside the first found the shared prefix.
        self.assertGreaterEqual(row["cached_tokens"], 8 * 128)
        for name, value in (("generation_tokens_total", 240), ("requests_submitted_total", 12)):
            self.assertEqual(after[name] - before[name], value)

    def test_overload_is_counted(self):
        row, _ = self.bench("--requests", "20", "--concurrency", "12", "--output-tokens", "100")
        self.assertEqual(row["completed"] + row["failed"], 20)
        self.assertGreater(row["failed"], 0)
        self.assertEqual(len(row["errors"]), 1)
        self.assertTrue(next(iter(row["errors"])).startswith("status 429: "), row["errors"])

    def test_chat_files_and_a_picture(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = pathlib.Path(folder, "lines.jsonl")
            lines.write_text('{"prompt": "the quick", "max_tokens": 3}\n'
                             '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}\n')
            picture = pathlib.Path(folder, "load.svg")
            row, errors = self.bench("--requests", "4", "--jsonl", str(lines), "--picture",
                                     str(picture))
            self.assertEqual((errors, row["completed"], row["output_tokens"]), ("", 4, 16))
            root = xml.etree.ElementTree.parse(picture).getroot()
            text = " ".join(root.itertext())
            for part in ("base at", "ttft", "tpot", "itl", "e2e", "output tokens per second"):
                self.assertIn(part, text)
        row, errors = self.bench("--endpoint", "chat", "--requests", "2", "--prompt-tokens", "9")
        self.assertEqual((errors, row["completed"]), ("", 2))

    def test_a_wrong_key(self):
        _, errors = self.bench(key="wrong-key")
        self.assertEqual(errors, f"hadal: {self.url[:-4]}/v1/models answered with status 401\n")
        row, _ = self.bench("--model", "base", "--requests", "2", key="wrong-key")
        self.assertEqual(row["errors"], {"status 401: the API key is wrong": 2})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        Server.model = harness.make_model(directory)
        unittest.main(verbosity=1)

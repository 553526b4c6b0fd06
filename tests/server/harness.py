"""A hadal server in the background and a small HTTP client, with the standard library alone.

    with Server("--max-seqs", "2") as server:
        status, headers, body = server.post("/v1/completions", {...})
        for event in server.stream("/v1/completions", {...}): ...
"""
# SPDX-License-Identifier: Apache-2.0
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading

HADAL = os.environ.get("HADAL", "build/release/hadal")
CHAT_TOKENS = ["<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
               "<\uFF5CUser\uFF5C>", "<\uFF5CAssistant\uFF5C>", "<think>", "</think>"]


def hadal(*arguments):
    done = subprocess.run([HADAL, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"hadal {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def generate(prompt, *options, **settings):
    """What `hadal generate` says about a prompt to the servers' model."""
    return json.loads(hadal("generate", "--model", Server.model, "--threads", "1", "--prompt", prompt,
                            "--json", *options,
                            *(f"--{key.replace('_', '-')}={value}" for key, value in settings.items())))


def make_model(folder):
    """The random base model with a tokenizer that has the tokens of a chat."""
    model = pathlib.Path(folder) / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"tests/goldens/base/{name}", model / name)
    # Room for replies that are still running when a test looks again.
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 16384
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = model / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog; some more words are here\n" * 50,
                    encoding="utf-8")
    tokens = [f"--special={token}" for token in CHAT_TOKENS]
    hadal("tokenizer", "train", "--input", str(text), "--vocab-size", "300", *tokens, "--output",
          str(model))
    return str(model)


def is_sanitized():
    program = pathlib.Path(HADAL).read_bytes()
    return b"__asan_init" in program or b"__tsan_init" in program


class Server:
    model = None  # made once for all servers of a test

    def __init__(self, *options, env=None, wrapper=(), template="deepseek-v3"):
        self.options, self.env, self.wrapper = options, env, list(wrapper)
        self.template = template

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [*self.wrapper, HADAL, "serve", "--model", self.model, "--port", "0", "--threads", "1",
             "--chat-template", self.template, "--name", "base", *self.options],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **(self.env or {})})
        line = self.process.stdout.readline()
        match = re.match(r"hadal: serving base on http://127.0.0.1:(\d+) after [\d.]+ s$", line)
        if not match:
            raise RuntimeError(f"no server: {line} {self.errors()}")
        self.port = int(match[1])
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def errors(self):
        self.log.seek(0)
        return self.log.read()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method, path, body=None, headers=None):
        connection = self.connect()
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), data

    def get(self, path, **headers):
        status, headers, data = self.request("GET", path, headers=headers)
        return status, headers, json.loads(data) if data[:1] in (b"{", b"[") else data.decode()

    def post(self, path, body, headers=None):
        status, headers, data = self.request("POST", path, body, headers)
        return status, headers, json.loads(data)

    def open_stream(self, path, body):
        connection = self.connect()
        connection.request("POST", path, json.dumps({**body, "stream": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        return connection, response

    def stream(self, path, body):
        """The JSON of each event; checks that the last one is [DONE]."""
        connection, response = self.open_stream(path, body)
        assert response.status == 200, response.read()
        assert response.getheader("Content-Type") == "text/event-stream"
        yield from events(response)
        connection.close()

    def complete_at_once(self, requests, is_streamed, seed):
        """Texts of these completions, greedy where they say nothing, all under way together in an order
        drawn from the seed; is_streamed(i) of them as streams."""
        texts = [None] * len(requests)

        def ask(i):
            body = {"temperature": 0, **requests[i]}
            if is_streamed(i):
                texts[i] = "".join(c["choices"][0]["text"] for c in self.stream("/v1/completions", body))
            else:
                texts[i] = self.post("/v1/completions", body)[2]["choices"][0]["text"]

        order = list(range(len(requests)))
        random.Random(seed).shuffle(order)
        threads = [threading.Thread(target=ask, args=(i,)) for i in order]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return texts

    def metrics(self):
        """{name: value}, labels other than the model's in the name."""
        text = self.get("/metrics")[2]
        values = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'\{model_name="base",?', "{", name).replace("{}", "")
            values[name.removeprefix("hadal:")] = float(value)
        return values


def why_no_forms(server):
    """What a build without structured output says to a form; None where it has it."""
    error = server.post("/v1/completions", {"prompt": "x", "guided_regex": "a"})[2].get("error")
    says = error["message"] if error else ""
    return says if "this build has no structured output" in says else None


def events(response):
    done = False
    for block in blocks(response):
        assert block.startswith("data: "), block
        assert not done, "an event after [DONE]"
        if block == "data: [DONE]":
            done = True
        else:
            yield json.loads(block[len("data: "):])
    assert done, "the stream has no [DONE]"


def blocks(response):
    for line in iter(response.readline, b""):
        line = line.decode().rstrip("\n")
        if line:
            yield line

#!/usr/bin/env python3
"""hadal serve over HTTP: answers equal to hadal generate's, streams equal to wholes, refusals."""
# SPDX-License-Identifier: Apache-2.0
import tempfile
import unittest

import harness
from harness import Server, generate

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
PROMPTS = ["the quick brown", "over the lazy dog; some more words are here and there " * 4,
           "fox", "some more words are here\n" * 7 + "the", "x"]


def user(text):
    return [{"role": "user", "content": text}]


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-seqs", "4", "--context", "512", "--chunk", "32").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_texts_over_an_fp8_cache_are_those_of_generate(self):
        with Server("--kv-cache", "fp8", "--max-seqs", "4", "--context", "512", "--chunk",
                    "7") as server:
            for i, prompt in enumerate(PROMPTS):
                settings = {"max_tokens": 20, "temperature": 0.9 if i % 2 else 0, "seed": i}
                body = {"prompt": prompt, **settings}
                self.assertEqual(server.post(COMPLETIONS, body)[2]["choices"][0]["text"],
                                 generate(prompt, **settings, kv_cache="fp8")["text"])

    def test_greedy_and_seeded_texts_are_those_of_generate_under_load(self):
        cases = []
        for i in range(14):
            prompt = PROMPTS[i % len(PROMPTS)]
            settings = {"max_tokens": 5 + 3 * i}
            if i % 2:
                settings.update(temperature=0.9, top_p=0.9, top_k=40, seed=i)
            cases.append((prompt, settings, generate(prompt, **settings)["text"]))
        for options in ([], ["--no-prefix-cache", "--cache-tokens", "512", "--chunk", "7"],
                        ["--speculate", "2", "--cache-tokens", "576"]):
            with Server("--max-seqs", "4", "--context", "512", *options) as server:
                got = server.complete_at_once(
                    [{"prompt": prompt, **settings} for prompt, settings, _ in cases],
                    lambda i: i % 3 == 0, len(options))
                for i, (_, settings, want) in enumerate(cases):
                    self.assertEqual(got[i], want, (options, settings))
                metrics = server.metrics()
                self.assertEqual(metrics["requests_submitted_total"], len(cases))
                self.assertEqual(sum(v for k, v in metrics.items()
                                     if k.startswith("request_success_total")), len(cases))

    def test_a_completion(self):
        status, headers, body = self.server.post(COMPLETIONS, {
            "model": "base", "prompt": "the quick", "max_tokens": 6, "temperature": 0, "logprobs": 2})
        self.assertEqual(status, 200)
        self.assertRegex(headers["X-Request-Id"], "^[0-9a-f]{16}$")
        self.assertEqual(body["object"], "text_completion")
        self.assertEqual(body["id"], "cmpl-" + headers["X-Request-Id"])
        choice = body["choices"][0]
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(body["usage"]["completion_tokens"], 6)
        self.assertEqual(body["usage"]["total_tokens"], 6 + body["usage"]["prompt_tokens"])
        logprobs = choice["logprobs"]
        self.assertEqual(len(logprobs["tokens"]), 6)
        for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertAlmostEqual(value, max(top.values()))
        self.assertEqual(logprobs["text_offset"][0], 0)

    def test_several_prompts_choices_echo_and_ids(self):
        ids = self.server.post("/tokenize", {"prompt": "the fox"})[2]["tokens"]
        body = {"prompt": [ids, [5, 9, 200]], "n": 2, "max_tokens": 4, "seed": 5, "echo": True,
                "logprobs": 0}
        choices = self.server.post(COMPLETIONS, body)[2]["choices"]
        self.assertEqual([c["index"] for c in choices], [0, 1, 2, 3])
        self.assertNotEqual(choices[0]["text"], choices[1]["text"])
        self.assertTrue(choices[0]["text"].endswith(
            self.server.post(COMPLETIONS, {"prompt": "the fox", "max_tokens": 4,
                                           "seed": 5})[2]["choices"][0]["text"]))
        self.assertEqual(len(choices[0]["logprobs"]["tokens"]), len(ids) + 4)
        self.assertIsNone(choices[0]["logprobs"]["token_logprobs"][0])
        self.assertEqual(self.server.post("/detokenize", {"tokens": ids[1:]})[2]["prompt"], "the fox")

    def test_chat_whole_and_streamed(self):
        body = {"messages": user("the quick brown fox"), "max_tokens": 20, "seed": 3, "n": 2,
                "logprobs": True, "top_logprobs": 1}
        status, _, whole = self.server.post(CHAT, body)
        self.assertEqual(status, 200, whole)
        self.assertEqual(whole["object"], "chat.completion")
        texts, finish, usage, logprobs = ["", ""], [None, None], None, [[], []]
        for chunk in self.server.stream(CHAT, {**body, "stream_options": {"include_usage": True}}):
            self.assertEqual(chunk["object"], "chat.completion.chunk")
            if not chunk["choices"]:
                usage = chunk["usage"]
                continue
            self.assertIsNone(chunk["usage"])
            choice = chunk["choices"][0]
            i = choice["index"]
            self.assertIsNone(finish[i])
            texts[i] += choice["delta"].get("content", "")
            finish[i] = choice["finish_reason"]
            if choice["logprobs"]:
                logprobs[i] += choice["logprobs"]["content"]
        self.assertEqual(usage["completion_tokens"], whole["usage"]["completion_tokens"])
        for i in (0, 1):
            choice = whole["choices"][i]
            self.assertEqual(texts[i], choice["message"]["content"])
            self.assertEqual(choice["message"]["role"], "assistant")
            self.assertEqual(finish[i], choice["finish_reason"])
            self.assertEqual(logprobs[i], choice["logprobs"]["content"])

    def test_stop_strings_cut_the_text_whole_and_streamed(self):
        body = {"prompt": "the quick brown", "max_tokens": 40, "temperature": 0}
        text = self.server.post(COMPLETIONS, body)[2]["choices"][0]["text"]
        stop = text[7:10]
        want = text[:text.index(stop)]
        got = self.server.post(COMPLETIONS, {**body, "stop": stop})[2]["choices"][0]
        self.assertEqual((got["text"], got["finish_reason"]), (want, "stop"))
        parts = list(self.server.stream(COMPLETIONS, {**body, "stop": [stop, "never"]}))
        self.assertEqual("".join(p["choices"][0]["text"] for p in parts), want)
        self.assertEqual(parts[-1]["choices"][0]["finish_reason"], "stop")

    def test_a_cached_prefix_is_told(self):
        body = {"prompt": "a cached prefix " * 20, "max_tokens": 2, "temperature": 0}
        first = self.server.post(COMPLETIONS, body)[2]
        second = self.server.post(COMPLETIONS, body)[2]
        self.assertEqual(first["choices"], second["choices"])
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertGreater(second["usage"]["prompt_tokens_details"]["cached_tokens"], 63)

    def test_models_health_and_metrics(self):
        self.assertEqual(self.server.get("/health")[2]["status"], "ok")
        self.assertEqual(self.server.get("/ready")[2]["status"], "ready")
        card = self.server.get("/v1/models/base")[2]
        self.assertEqual(self.server.get("/v1/models")[2]["data"], [card])
        self.assertEqual(card["max_model_len"], 512)
        metrics = self.server.get("/metrics")[2]
        self.assertIn('# TYPE hadal:time_to_first_token_seconds histogram', metrics)
        self.assertIn('hadal:num_requests_running{model_name="base"} ', metrics)

    def test_refusals(self):
        cases = [
            (CHAT, {"messages": user("x"), "temprature": 1}, 400,
             'request: unknown key "temprature"; did you mean "temperature"?'),
            (CHAT, {"messages": user("x"), "model": "gpt"}, 404,
             "there is no model gpt; this server has base"),
            (CHAT, {"messages": []}, 400,
             'messages is missing or empty; give [{"role": ..., "content": ...}]'),
            (CHAT, {"messages": user("x"), "temperature": -1}, 400,
             "temperature is -1; allowed: 0 to 100"),
            (CHAT, {"messages": user("x"), "top_logprobs": 2}, 400,
             'top_logprobs needs "logprobs": true'),
            (CHAT, {"messages": user("x"), "max_tokens": 1000000}, 400, None),
            (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
            (CHAT, {"messages": [{"role": {"name": "f"}, "content": "x"}]}, 400, None),
            (CHAT, {"messages": user("x"), "tools": [{"type": ["function"]}]}, 400, None),
            (CHAT, {"messages": user("x"), "tool_choice": {"type": 5}}, 400, None),
            (RESPONSES, {"input": [{"type": {}}]}, 400, "type in input must be a string"),
            (RESPONSES, {"input": [{"role": 5}]}, 400, "role in input must be a string"),
            (RESPONSES, {"input": [{"content": [{"type": "text", "text": 5}]}]}, 400,
             "text in input must be a string"),
            (RESPONSES, {"input": "x", "tools": [{"type": 5}]}, 400,
             "only tools of type function are supported"),
            (CHAT, {"messages": user("x"), "logit_bias": {"9": 200}}, 400,
             "logit_bias of token 9 must be a number in -100 to 100"),
            (COMPLETIONS, {"prompt": "x" * 5000}, 400, None),
            (COMPLETIONS, {"prompt": [999999]}, 400, "token 999999 is outside the vocabulary of 320"),
            (COMPLETIONS, {"prompt": [[5], {}]}, 400,
             "prompt is a list of something else than text or token ids"),
            (COMPLETIONS, {"prompt": "x", "n": 0}, 400, None),
            (COMPLETIONS, {"prompt": "x", "suffix": "y"}, 400, None),
            (COMPLETIONS, {"prompt": "x", "stream": True, "echo": True}, 400,
             "echo with stream is not supported; leave one out"),
            ("/v1/embeddings", {}, 404, "there is no /v1/embeddings"),
            ("/health", {}, 405, "/health takes GET"),
        ]
        for path, body, want, message in cases:
            status, _, answer = self.server.post(path, body)
            self.assertEqual(status, want, (path, body, answer))
            self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
            if message:
                self.assertEqual(answer["error"]["message"], message)
        for body in ("", "{", "[]", "nul", '{"prompt": "\\ud800"}', "{" * 200):
            self.assertEqual(self.server.post(COMPLETIONS, body)[0], 400, body)
        self.assertEqual(self.server.post(COMPLETIONS, {"prompt": "x"},
                                          {"Content-Type": "text/plain"})[0], 415)
        self.assertEqual(self.server.get("/nothing")[0], 404)


class Keys(unittest.TestCase):
    def test_only_known_keys_are_let_in(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("# two keys\nfirst-key-1\nsecond-key-2\n")
            file.flush()
            with Server("--api-key-file", file.name, env={"HADAL_API_KEY": "third-key-3"}) as server:
                for key in ("first-key-1", "second-key-2", "third-key-3"):
                    self.assertEqual(server.get("/v1/models", Authorization=f"Bearer {key}")[0], 200)
                for header in ("Bearer first-key-", "Bearer ", "first-key-1", "Bearer first-key-2"):
                    status, _, body = server.get("/v1/models", Authorization=header)
                    self.assertEqual((status, body["error"]["type"]), (401, "authentication_error"))
                self.assertEqual(server.get("/v1/models")[0], 401)
                self.assertEqual(server.get("/health")[0], 200)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = harness.make_model(folder)
        unittest.main()

"""hadal serve through OpenAI's own Python client, and its answers against the client's types.

    python tests/peers/check_openai.py        needs the package openai; HADAL names the program

The model is trained here, for a minute on the text of the quickstart.
"""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import subprocess
import sys
import tempfile
import typing
import unittest

import openai
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "server"))
import harness  # noqa: E402
from harness import Server  # noqa: E402

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the quick brown"}]
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
TOOL_TOKENS = [f"<\uFF5Ctool\u2581{name}\uFF5C>" for name in (
    "calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")]


class Verse(BaseModel):
    book: typing.Literal["Genesis", "Exodus", "Ruth"]
    chapter: int = Field(ge=1, le=50)
    words: list[typing.Literal["light", "water", "earth"]] = Field(max_length=3)
    spoken: bool


class Weather(BaseModel):
    """of a city"""
    city: typing.Literal["Paris", "Rome"]
    celsius: bool


def train_model(folder):
    """A small DeepSeek-V3 with a tokenizer that has the tokens of chats and calls."""
    text, model = f"{folder}/text.txt", f"{folder}/model"
    subprocess.run(["scripts/get_text.sh", text], check=True)
    tokens = [f"--special={token}" for token in harness.CHAT_TOKENS + TOOL_TOKENS]
    harness.hadal("tokenizer", "train", "--input", text, "--vocab-size", "2048", *tokens, "--output",
                  f"{folder}/tokenizer")
    settings = {"data.text": text, "data.tokenizer": f"{folder}/tokenizer", "train.output": model,
                "train.steps": 120, "train.eval_every": 120, "train.checkpoint_every": 120,
                "model.max_position_embeddings": 2048}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    harness.hadal("train", "configs/quickstart.json", *sets)
    return model


def validate(kind, value):
    """Strictly: the client itself builds its objects without looking."""
    TypeAdapter(kind).validate_python(value.to_dict())
    return value


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-seqs", "4", "--max-queue", "2", "--context", "1024",
                            env={"HADAL_API_KEY": "secret-key"}).__enter__()
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1",
                                   api_key="secret-key", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()

    def chat(self, **settings):
        return self.client.chat.completions.create(
            model="base", messages=MESSAGES, **{"max_tokens": 12, "seed": 1, **settings})

    def test_models(self):
        self.assertEqual([validate(Model, m).id for m in self.client.models.list()], ["base"])
        self.assertEqual(self.client.models.retrieve("base").owned_by, "hadal")

    def test_chat_and_streaming(self):
        whole = validate(ChatCompletion, self.chat())
        self.assertEqual(whole.usage.completion_tokens, 12)
        text, usage = "", None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            validate(ChatCompletionChunk, chunk)
            usage = chunk.usage or usage
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, whole.choices[0].message.content)
        # The prompt was run before, so all of it but its last token is found in the cache.
        self.assertEqual(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens - 1)
        for usage_of in (usage, whole.usage):
            usage_of.prompt_tokens_details.cached_tokens = None
        self.assertEqual(usage, whole.usage)
        with self.client.chat.completions.stream(model="base", messages=MESSAGES, max_tokens=12,
                                                 seed=1) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
        self.assertEqual("".join(deltas), text)

    def test_choices_and_logprobs(self):
        answer = validate(ChatCompletion, self.chat(n=3, logprobs=True, top_logprobs=2))
        self.assertEqual(len({c.message.content for c in answer.choices}), 3)
        for choice in answer.choices:
            self.assertEqual(len(choice.logprobs.content), 12)
            for token in choice.logprobs.content:
                self.assertEqual(len(token.top_logprobs), 2)
                self.assertLessEqual(token.logprob, 0)

    def test_tools(self):
        # A random model calls nothing; the request, with a call and its output behind it, is read.
        messages = MESSAGES + [
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
        answer = self.client.chat.completions.create(model="base", messages=messages, tools=[TOOL],
                                                     tool_choice="auto", max_tokens=5)
        validate(ChatCompletion, answer)
        plain = self.client.chat.completions.create(model="base", messages=MESSAGES, max_tokens=5)
        self.assertGreater(answer.usage.prompt_tokens, plain.usage.prompt_tokens + 50)

    def test_json_schema(self):
        for seed in range(3):
            answer = self.client.chat.completions.parse(
                model="base", messages=MESSAGES, seed=seed, max_tokens=300, response_format=Verse)
            validate(ChatCompletion, answer)
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            verse = answer.choices[0].message.parsed
            self.assertIsInstance(verse, Verse)
            with self.client.chat.completions.stream(
                    model="base", messages=MESSAGES, seed=seed, max_tokens=300,
                    response_format=Verse) as stream:
                self.assertEqual(stream.get_final_completion().choices[0].message.parsed, verse)
        answer = self.client.responses.parse(model="base", input="the quick brown", text_format=Verse,
                                             max_output_tokens=300)
        self.assertIsInstance(answer.output_parsed, Verse)
        answer = self.chat(response_format={"type": "json_object"}, max_tokens=300, temperature=0)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_forced_calls(self):
        tool = openai.pydantic_function_tool(Weather)
        for choice in ("required", {"type": "function", "function": {"name": "Weather"}}):
            settings = {"model": "base", "messages": MESSAGES, "tools": [tool], "seed": 2,
                        "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 300}
            answer = validate(ChatCompletion, self.client.chat.completions.parse(**settings))
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            call, = answer.choices[0].message.tool_calls
            self.assertIsInstance(call.function.parsed_arguments, Weather)
            name, arguments = "", ""
            for chunk in self.client.chat.completions.create(**settings, stream=True):
                validate(ChatCompletionChunk, chunk)
                for part in chunk.choices[0].delta.tool_calls or []:
                    name += part.function.name or ""
                    arguments += part.function.arguments or ""
            self.assertEqual((name, arguments), ("Weather", call.function.arguments))

    def test_the_model_has_learned(self):
        answer = self.client.completions.create(model="base", prompt="And the LORD", max_tokens=40,
                                                temperature=0, logprobs=0,
                                                extra_body={"ignore_eos": True})
        # A guess among 2,048 tokens has a mean of -7.6.
        values = answer.choices[0].logprobs.token_logprobs
        self.assertGreater(sum(values) / len(values), -5)

    def test_completions(self):
        answer = validate(Completion, self.client.completions.create(
            model="base", prompt=["the fox", "the dog"], n=2, max_tokens=4, echo=True))
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertTrue(answer.choices[2].text.startswith("the dog"))
        # The published type has no null for the reason of a part; OpenAI's own streams do.
        parts = list(self.client.completions.create(model="base", prompt="the fox", max_tokens=4,
                                                    stream=True))
        validate(Completion, parts[-1])
        self.assertEqual(parts[-1].choices[0].finish_reason, "length")

    def test_responses(self):
        settings = {"model": "base", "instructions": "Be brief.", "input": "the quick brown",
                    "max_output_tokens": 12, "extra_body": {"seed": 1}}
        whole = validate(Response, self.client.responses.create(**settings))
        self.assertEqual(whole.output_text, self.chat().choices[0].message.content)
        self.assertEqual(whole.incomplete_details.reason, "max_output_tokens")
        text, last = "", None
        for i, event in enumerate(self.client.responses.create(**settings, stream=True)):
            last = validate(ResponseStreamEvent, event)
            self.assertEqual(event.sequence_number, i)
            if event.type == "response.output_text.delta":
                text += event.delta
        self.assertEqual(text, whole.output_text)
        self.assertEqual(last.type, "response.incomplete")
        self.assertEqual(last.response.usage, whole.usage)
        with self.assertRaises(openai.BadRequestError):
            self.client.responses.create(**settings, previous_response_id="resp_1")

    def test_errors(self):
        for settings, kind in (({"temperature": 1000}, openai.BadRequestError),
                               ({"model": "other"}, openai.NotFoundError),
                               ({"n": 100}, openai.BadRequestError),
                               ({"response_format": {"type": "json_schema", "json_schema": {
                                   "name": "x", "schema": {"type": "strange"}}}},
                                openai.BadRequestError),
                               ({"tool_choice": "required"}, openai.BadRequestError),
                               ({"extra_body": {"nonsense": 1}}, openai.BadRequestError)):
            with self.assertRaises(kind) as raised:
                self.client.chat.completions.create(**{"model": "base", "messages": MESSAGES,
                                                       **settings})
            self.assertTrue(raised.exception.body["message"])
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong-key").models.list()
        # More sequences than may wait and run: refused as a whole.
        with self.client.chat.completions.create(model="base", messages=MESSAGES, n=4, stream=True,
                                                 extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
            with self.assertRaises(openai.RateLimitError):
                self.chat(n=3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = train_model(folder)
        unittest.main()

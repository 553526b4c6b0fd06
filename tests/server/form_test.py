#!/usr/bin/env python3
"""Replies held to a form: JSON schemas, regular expressions, grammars, choices and forced calls."""
# SPDX-License-Identifier: Apache-2.0
import json
import re
import sys
import tempfile
import threading
import unittest

import harness
from harness import Server

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
# Bounded, so that a random model comes to its end.
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "kind", "on"],
          "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
                         "kind": {"enum": ["fox", "dog", 7]},
                         "on": {"type": "boolean"},
                         "list": {"type": "array", "items": {"type": "null"}, "maxItems": 2}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    "additionalProperties": False}}},
         {"type": "function", "function": {"name": "clock", "parameters": {
             "type": "object", "properties": {}, "additionalProperties": False}}}]


def user(text):
    return [{"role": "user", "content": text}]


def as_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "thing", "strict": True,
                                                   "schema": schema}}


class Forms(unittest.TestCase):
    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-seqs", "4", "--context", "2048", *cls.options).__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def ask(self, path, body):
        limit = {} if path == RESPONSES else {"max_tokens": 400}
        status, _, answer = self.server.post(path, {**limit, **body})
        self.assertEqual(status, 200, answer)
        return answer

    def check_thing(self, text):
        value = json.loads(text)
        self.assertLessEqual(set(value), {"name", "kind", "on", "list"})
        self.assertRegex(value["name"], "^[a-z]{1,6}$")
        self.assertIn(value["kind"], ("fox", "dog", 7))
        self.assertIs(type(value["on"]), bool)
        self.assertIn(value.get("list", []), ([], [None], [None, None]))

    def test_schemas_under_any_sampling(self):
        for seed, settings in enumerate((
                {}, {"temperature": 0}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.5},
                {"min_p": 0.3}, {"repetition_penalty": 1.5}, {"presence_penalty": 2},
                {"min_tokens": 300}, {"logit_bias": {str(i): -100 for i in range(40, 90)}})):
            answer = self.ask(CHAT, {"messages": user("a thing"), "seed": seed, **settings,
                                     "response_format": as_schema(SCHEMA)})
            choice = answer["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop", (settings, choice))
            self.check_thing(choice["message"]["content"])

    def test_streams_choices_and_logprobs(self):
        body = {"messages": user("a thing"), "seed": 4, "n": 3, "logprobs": True, "top_logprobs": 1,
                "response_format": as_schema(SCHEMA), "max_tokens": 400}
        whole = self.ask(CHAT, body)
        texts = ["", "", ""]
        for chunk in self.server.stream(CHAT, body):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
        for i, choice in enumerate(whole["choices"]):
            self.check_thing(choice["message"]["content"])
            self.assertEqual(texts[i], choice["message"]["content"])
            # Of the model itself: what it would have said is another token now and then.
            tokens = choice["logprobs"]["content"]
            self.assertEqual("".join(t["token"] for t in tokens), choice["message"]["content"])
            self.assertTrue(any(t["top_logprobs"][0]["token"] != t["token"] for t in tokens))
        self.assertEqual(len(set(texts)), 3)
        one = self.ask(CHAT, {**body, "n": 1})
        self.assertEqual(one["choices"][0]["message"], whole["choices"][0]["message"])

    def test_every_way_to_ask(self):
        choices = ["fox", "a \"quoted\" dog", "\u00e9"]
        ebnf = 'root ::= "(" root ")" | [0-9]'
        for form, is_right in (
                ({"response_format": {"type": "json_object"}, "logit_bias": {}},
                 None),
                ({"guided_json": SCHEMA}, self.check_thing),
                ({"guided_json": json.dumps(SCHEMA)}, self.check_thing),
                ({"structured_outputs": {"json": SCHEMA}}, self.check_thing),
                ({"guided_regex": "[a-f]{3}-[0-9]{2}"},
                 lambda t: self.assertRegex(t, "^[a-f]{3}-[0-9]{2}$")),
                ({"structured_outputs": {"regex": "x{2,4}"}},
                 lambda t: self.assertRegex(t, "^x{2,4}$")),
                ({"guided_choice": choices}, lambda t: self.assertIn(t, choices)),
                ({"structured_outputs": {"choice": choices}}, lambda t: self.assertIn(t, choices)),
                ({"guided_grammar": ebnf}, lambda t: self.assertRegex(t, r"^\(*[0-9]\)*$")),
                ({"response_format": {"type": "structural_tag", "format": {
                    "type": "sequence", "elements": [
                        {"type": "const_string", "value": "It is "},
                        {"type": "json_schema", "json_schema": {"type": "boolean"}}]}}},
                 lambda t: self.assertIn(t, ("It is true", "It is false")))):
            for seed in range(3):
                answer = self.ask(COMPLETIONS, {"prompt": "the fox", "seed": seed, **form})
                choice = answer["choices"][0]
                if is_right:
                    self.assertEqual(choice["finish_reason"], "stop", form)
                    is_right(choice["text"])
                elif choice["finish_reason"] == "stop":
                    self.assertIs(type(json.loads(choice["text"])), dict)
                else:
                    self.assertRegex(choice["text"], r"^\s*\{")
        answer = self.ask(RESPONSES, {"input": "a thing", "max_output_tokens": 400,
                                      "text": {"format": {"type": "json_schema", "name": "thing",
                                                          "schema": SCHEMA}}})
        self.assertEqual(answer["text"]["format"]["schema"], SCHEMA)
        self.check_thing(answer["output"][0]["content"][0]["text"])

    def test_properties_come_in_the_order_of_the_schema(self):
        schema = {"type": "object", "additionalProperties": False, "required": ["z", "a"],
                  "properties": {"z": {"type": "null"}, "a": {"type": "null"}}}
        text = self.ask(COMPLETIONS, {"prompt": "x", "guided_json": schema})["choices"][0]["text"]
        self.assertEqual(list(json.loads(text)), ["z", "a"])

    def test_forced_calls(self):
        named = {"type": "function", "function": {"name": "weather"}}
        several = 0
        for seed in range(8):
            for choice, more in (("required", {}), (named, {}),
                                 ("required", {"parallel_tool_calls": False})):
                body = {"messages": user("how is it?"), "tools": TOOLS, "tool_choice": choice,
                        "seed": seed, "max_tokens": 700, **more}
                answer = self.ask(CHAT, body)["choices"][0]
                if answer["finish_reason"] == "length" and choice == "required" and not more:
                    continue  # a random model may not come to the end of its list
                self.assertEqual(answer["finish_reason"], "tool_calls", answer)
                self.assertIsNone(answer["message"]["content"])
                calls = answer["message"]["tool_calls"]
                several += len(calls) > 1
                if choice != "required" or more:
                    self.assertEqual(len(calls), 1)
                for call in calls:
                    arguments = json.loads(call["function"]["arguments"])
                    if call["function"]["name"] == "weather":
                        self.assertIn(arguments, ({"city": "Paris"}, {"city": "Rome"}))
                    else:
                        self.assertEqual((call["function"]["name"], arguments), ("clock", {}))
                        self.assertEqual(choice, "required")
                streamed = {}
                for chunk in self.server.stream(CHAT, body):
                    for part in chunk["choices"][0]["delta"].get("tool_calls", []):
                        one = streamed.setdefault(part["index"], {"name": "", "arguments": ""})
                        for key, text in part["function"].items():
                            one[key] += text
                self.assertEqual([streamed[i] for i in sorted(streamed)],
                                 [call["function"] for call in calls])
        self.assertGreater(several, 0)

    def test_what_cannot_be_honoured(self):
        schema = as_schema(SCHEMA)
        for body, message in (
                ({"response_format": {"type": "xml"}}, 'response_format of type "xml" is not known; '
                 "allowed: text, json_object, json_schema, structural_tag"),
                ({"response_format": {"type": "json_schema"}},
                 "response_format of type json_schema has no schema"),
                ({"response_format": schema, "guided_regex": "a"}, "response_format and "
                 "guided_regex both give the form of the reply; leave one out"),
                ({"guided_choice": []}, "guided_choice must be a list of texts"),
                ({"guided_regex": ""}, "guided_regex must be text that is not empty"),
                ({"guided_json": "{"}, "guided_json is no JSON schema; give an object"),
                ({"structured_outputs": {"whitespace": 1}}, "structured_outputs.whitespace is not "
                 "known; allowed: json, regex, choice, grammar, json_object: true, structural_tag"),
                ({"response_format": schema, "ignore_eos": True},
                 "a reply that is held to a form needs an end token; leave out ignore_eos"),
                ({"response_format": schema, "tools": TOOLS},
                 "tools and a form of the reply exclude each other; use tool_choice none"),
                ({"response_format": schema, "tools": TOOLS, "tool_choice": "required"},
                 "a forced call and another form of the reply exclude each other"),
                ({"tool_choice": "required"}, "tool_choice asks for a call, and there are no tools"),
                ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
                 "tool_choice names x, which is no tool"),
                ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice must be auto, none, "
                 'required or {"type": "function", "function": {"name": ...}}'),
                ({"guided_regex": "a" * 300000}, "guided_regex has 300000 bytes; at most 262144 are "
                 "compiled"),
                ({"guided_json": {"properties": {"not": {"uniqueItems": True}}}}, "guided_json has "
                 "uniqueItems, to which no reply can be held; leave it out"),
                ({"guided_regex": "(a"}, None), ({"guided_grammar": "root ::= x"}, None),
                ({"guided_regex": "a(?=b)"}, None),
                ({"guided_json": {"type": "number", "multipleOf": 0.1}}, None)):
            for stream in (False, True):
                status, _, answer = self.server.post(
                    CHAT, {"messages": user("x"), "stream": stream, **body})
                self.assertEqual(status, 400, (body, answer))
                if message:
                    self.assertEqual(answer["error"]["message"], message)
                else:
                    self.assertRegex(answer["error"]["message"],
                                     "^the form of the reply cannot be honoured: ")
                    self.assertEqual(answer["error"]["code"], "invalid_form")
        self.assertEqual(self.server.post(CHAT, {"messages": user("x"), "max_tokens": 1})[0], 200)

    def test_many_at_once(self):
        wrong = []

        def ask(i):
            form, pattern = ({"guided_regex": "[a-c]{5}"}, "^[a-c]{5}$") if i % 2 else (
                {}, "(?s)^.*$")
            body = {"prompt": "the quick brown fox", "seed": i, "max_tokens": 12, **form}
            answer = self.server.post(COMPLETIONS, body)[2]
            if not re.match(pattern, answer["choices"][0]["text"]):
                wrong.append((body, answer))
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class FormsWithSpeculation(Forms):
    """The same, drafts included, and the same texts."""
    options = ("--speculate", "2", "--cache-tokens", "2560", "--chunk", "24")

    def test_texts_are_those_without(self):
        with Server("--max-seqs", "4", "--context", "2048") as plain:
            for seed in range(6):
                body = {"prompt": "a thing", "seed": seed, "max_tokens": 200, "guided_json": SCHEMA}
                want = plain.post(COMPLETIONS, body)[2]["choices"]
                self.assertEqual(self.server.post(COMPLETIONS, body)[2]["choices"], want)


class Reasoning(unittest.TestCase):
    def test_a_form_begins_behind_reasoning(self):
        with Server("--context", "1024", template="deepseek-r1") as server:
            think_end = server.post("/tokenize", {"prompt": "</think>",
                                                  "add_special_tokens": False})[2]["tokens"]
            self.assertEqual(len(think_end), 1)
            seen = 0
            for seed in range(4):
                # So likely that reasoning ends soon.
                answer = server.post(CHAT, {
                    "messages": user("a thing"), "seed": seed, "max_tokens": 400,
                    "logit_bias": {str(think_end[0]): 3},
                    "response_format": as_schema(SCHEMA)})[2]["choices"][0]
                message = answer["message"]
                if message["content"]:
                    seen += 1
                    self.assertEqual(answer["finish_reason"], "stop")
                    Forms.check_thing(self, message["content"])
            self.assertGreater(seen, 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = harness.make_model(folder)
        with Server() as probe:
            missing = harness.why_no_forms(probe)
        if missing:
            print(missing)
            sys.exit(77)
        unittest.main()

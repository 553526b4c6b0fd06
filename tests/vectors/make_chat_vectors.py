#!/usr/bin/env python3
"""Renders conversations with public chat templates: the vectors of tests/unit/chat_template_test.cc.

    tests/vectors/make_chat_vectors.py TEMPLATES

TEMPLATES is a directory with the Jinja files, which are not part of this repository:
  own_v3, own_v3_0324, own_r1, own_v31      chat_template of the models' tokenizer_config.json
  vllm_v3, vllm_r1, vllm_v31                vllm-project/vllm examples/tool_chat_template_deepseek*
each with the ending .jinja. Rendered as transformers does. The v*-tools vectors are vLLM's, read
without the indentation of the files. Where a template fails on a conversation, the vector is null.
"""
# SPDX-License-Identifier: Apache-2.0
import functools
import json
import pathlib
import random
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
OUT = pathlib.Path(__file__).parent

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "\u57ce\u5e02 \"name\""},
        "days": {"type": "integer", "minimum": 1, "default": 3}}}}}
ADD = {"type": "function", "function": {
    "name": "add", "description": "", "parameters": {
        "properties": {"b": {"type": "number"}, "a": {"type": ["number", "null"]}},
        "x": [1.5, 1e20, -2.5e-7, 100000.0, True, None, "\u00e9\n\t\\", {}, [], -0.0, 1e16, 0.0001]}}}


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


def output(text):
    return {"role": "tool", "content": text, "tool_call_id": "c1"}


def call(name, arguments):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(text, *items):
    return {"role": "assistant", "content": text, "tool_calls": list(items)}


W = call("get_weather", '{"city": "Paris"}')
A = call("add", '{"a":1,  "b" : [2.50, 1e3, "\u00fc"]}')
EMPTY = call("add", "{}")


def conversations():
    """(messages, tools, options) by hand and at random."""
    say = [user("Hi")]
    tool_turn = [user("Weather?"), calls(None, W), output("sunny")]
    yield say, [], {}
    yield say, [], {"add_generation_prompt": False}
    yield say, [], {"thinking": True}
    yield [system("Be brief."), user("Hi")], [], {}
    yield [system("a"), system("b"), user("Hi"), system("late")], [], {}
    yield [system(""), user("")], [], {}
    yield [user("1"), reply("2"), user("3")], [], {}
    yield [user("1"), reply("<think>because</think>2"), user("3")], [], {"thinking": True}
    yield [user("1"), reply("a</think>b</think>c"), user("3")], [], {}
    yield [user("1"), reply("</think>")], [], {}
    yield [user("1"), reply("2")], [], {"add_generation_prompt": False}
    yield [user("1"), reply("2", prefix=True)], [], {"thinking": True}
    yield [user("\u4f60\u597d \U0001f680\n\n e\u0301"), reply("\u00fc \t"), user(" \n")], [], {}
    yield [user("<think>"), reply(""), user(BOS)], [], {}
    yield [reply("first"), user("then")], [], {}
    yield [user("a"), user("b"), reply("c"), reply("d")], [], {}
    yield [output("lost"), reply("x")], [], {}
    yield tool_turn, [], {}
    yield tool_turn, [], {"add_generation_prompt": False, "thinking": True}
    yield tool_turn + [reply("It is sunny.")], [], {}
    yield [user("?"), calls("Let me look.", W, A, EMPTY), output("1"), output("2"),
           reply("a</think>b"), user("!")], [], {}
    yield tool_turn + [calls("More</think> now", A), output("3"), reply("3"), user("again"),
                       calls("", W), output("rain"), output("")], [], {}
    yield tool_turn + [user("interrupted"), reply("ok")], [], {}
    yield [calls("odd", W), calls("order", A), reply("x")], [], {}
    for tools in [[WEATHER], [ADD, WEATHER]]:
        yield say, tools, {}
        yield [system("Be brief."), user("Hi"), reply("</think>Yes"), user("?")], tools, {}
        yield tool_turn, tools, {"thinking": True}
    yield tool_turn + [reply("It is sunny."), user("And?"), calls("Both.", W, A),
                       output("rain"), output("4"), reply("x</think>y")], [ADD], {}
    dice = random.Random(7)
    for _ in range(40):
        messages = []
        for _ in range(dice.randrange(2, 7)):
            text = dice.choice(["", "a", "\u00e9 b\n", "<think>t</think>c", "\u3042\u3044"])
            messages.append(dice.choice([
                user(text), user(text), reply(text), output(text), system(text),
                calls(text, *dice.choices([W, A, EMPTY], k=dice.randrange(1, 3)))]))
        yield messages, dice.choice([[], [], [], [], [ADD]]), {
            "thinking": dice.random() < 0.5, "add_generation_prompt": dice.random() < 0.7}


@functools.lru_cache
def compiled(source):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    return env.from_string(source)


def without_layout(text):
    """The template without what only its indentation writes; V3's text of tools keeps its lines."""
    head, mark, tail = text.partition("{%- if tools %}")
    if mark:
        tools, end, tail = tail.partition("{%- endif %}")
        lines = [line.strip() for line in tools.split("\n") if line.strip()]
        for i, line in enumerate(lines):
            if line.startswith(('{{"For', '{{"<\uff5c')) and not line.endswith('\\n" }}'):
                lines[i] += "{{'\\n'}}"
        mark, tail = mark + "".join(lines) + end, tail
    strip = lambda part: "".join(line.strip() for line in part.split("\n"))
    # A text in quotes may go over several lines only between them.
    return strip(head) + mark + strip(tail)


def render(name, source, messages, tools, options):
    messages = json.loads(json.dumps(messages))
    for message in messages:
        # Templates look whether the key is there; arguments are text in their own, data in vLLM's.
        for item in message.get("tool_calls", []) if not name.startswith("own") else []:
            item["function"]["arguments"] = json.loads(item["function"]["arguments"])
        if "r1" in name and name != "own_r1" and message["content"] is None:
            message["content"] = ""  # it asks whether </think> is in it
    try:
        return compiled(source).render(
            messages=messages, tools=tools or None, bos_token=BOS,
            add_generation_prompt=options.get("add_generation_prompt", True),
            thinking=options.get("thinking", False))
    except TypeError:
        return None


def main():
    folder = pathlib.Path(sys.argv[1])
    files = {"deepseek-v3": ("own_v3", "vllm_v3"), "deepseek-v3-0324": ("own_v3_0324", "vllm_v3"),
             "deepseek-r1": ("own_r1", "vllm_r1"), "deepseek-v3.1": ("own_v31", "vllm_v31"),
             "vllm-deepseek-v3": ("vllm_v3", None), "vllm-deepseek-r1": ("vllm_r1", None),
             "vllm-deepseek-v3.1": ("vllm_v31", None)}
    chats = list(conversations())
    dump = lambda name, value: (OUT / name).write_text(
        "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]\n",
        encoding="utf-8")
    dump("chat_conversations.json", [
        {"messages": m, **({"tools": t} if t else {}), **o} for m, t, o in chats])
    for name, (own, with_tools) in files.items():
        texts = []
        for messages, tools, options in chats:
            file = with_tools if tools and with_tools else own
            source = (folder / f"{file}.jinja").read_text(encoding="utf-8")
            if file == with_tools:
                source = without_layout(source)
            texts.append(render(file, source, messages, tools, options))
        if name == "deepseek-v3-0324":  # with tools, the same as deepseek-v3
            texts = [None if t else text for text, (_, t, _) in zip(texts, chats)]
        dump(f"chat_{name}.json", texts)
        print(name, len(texts), "of which fail:", sum(t is None for t in texts))


if __name__ == "__main__":
    main()

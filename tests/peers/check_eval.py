"""`hadal eval` against an own computation of what lm-evaluation-harness defines, with transformers'
logits: accuracy, accuracy by length, extracted answers, exact match, standard errors."""
# SPDX-License-Identifier: Apache-2.0
import json
import math
import random
import re

import torch
from tokenizers import Tokenizer

import ours
import theirs

BOS, NEW_TOKENS = 0, 12
PATTERN, IGNORED = r"([a-z]{2,4}) [a-z]+|([0-9]+)", [r"n", r"^b"]


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def log_likelihood(model, tokenizer, context, continuation):
    """Of the continuation; blanks at the end of the context belong to it."""
    kept = context.rstrip(" \n\t\r")
    whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
    start = len(tokenizer.encode(kept, add_special_tokens=False).ids)
    rows = torch.log_softmax(theirs.logits(model, [BOS, *whole])[:-1], dim=-1)
    return float(sum(rows[i, whole[i]] for i in range(start, len(whole))))


def find_answer(text, pattern):
    """The regex filter, its last match: the group that took part, or all of the match."""
    found = re.findall(pattern, text)
    if not found:
        return "[invalid]"
    answer = found[-1]
    if isinstance(answer, tuple):
        answer = next((group for group in answer if group), "")
    return answer.strip()


def without(text):
    for pattern in IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower().strip()


def standard_error(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def compare_shares(report, name, got, values):
    report.figure(name, abs(got[name] - sum(values) / len(values)), 1e-12)
    report.figure(f"{name}_stderr", abs(got[f"{name}_stderr"] - standard_error(values)), 1e-12)


def check_choices(report, directory, model, tokenizer, words, work):
    report.begin("eval, choices")
    rng = random.Random(31)
    draw = lambda n: " ".join(rng.choices(words, k=n))
    items = [{"query": draw(rng.randint(1, 12)) + rng.choice(["", ".", ": "]), "gold": i % 3,
              "choices": [draw(1), draw(rng.randint(2, 4)), draw(6) + "."]} for i in range(30)]
    shots = [{"query": draw(4), "choices": [draw(1), draw(2)], "gold": i % 2} for i in range(3)]
    task, few, output = work / "choices.jsonl", work / "shots.jsonl", work / "choices.out"
    got = json.loads(ours.hadal(
        "eval", "--model", directory, "--task", write(task, items), "--fewshot-file",
        write(few, shots), "--num-fewshot", 2, "--output", output, "--dtype", "f32", "--json"))
    lines = [json.loads(line) for line in output.read_text().split("\n")[1:-1]]
    joined = lambda query, choice: query + ("" if query[-1] == " " else " ") + choice
    before = "".join(joined(s["query"], s["choices"][s["gold"]]) + "\n\n" for s in shots[:2])
    right, by_length, worst = [], [], 0.0
    for item, line in zip(items, lines, strict=True):
        query = before + item["query"]
        sums = [log_likelihood(model, tokenizer, query, joined(query, c)[len(query):])
                for c in item["choices"]]
        worst = max(worst, max(abs(a - b) for a, b in zip(sums, line["log_probs"], strict=True)))
        best = lambda scores: max(range(len(scores)), key=scores.__getitem__)
        right.append(float(best(sums) == item["gold"]))
        by_length.append(float(best([s / len(c) for s, c in zip(sums, item["choices"])])
                               == item["gold"]))
    report.figure("log_probs", worst, 1e-3)
    compare_shares(report, "acc", got, right)
    compare_shares(report, "acc_norm", got, by_length)


def check_generated(report, directory, model, tokenizer, words, work):
    report.begin("eval, generated")
    rng = random.Random(32)
    prompts = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(20)]
    outputs = []
    for prompt in prompts:
        ids = [BOS, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        reply = theirs.greedy(model, ids, NEW_TOKENS)
        if 1 in reply:  # the token that ends a text
            reply = reply[:reply.index(1)]
        outputs.append(tokenizer.decode(reply, skip_special_tokens=False).split(".")[0])
    # Every second answer is what the model says, in another case and with what is ignored.
    answers = [find_answer(o, PATTERN) for o in outputs]
    items = [{"context": p, "answer": ["none of this", a.upper() if i % 2 else "?"],
              "until": ["."]} for i, (p, a) in enumerate(zip(prompts, answers))]
    task, output = work / "generated.jsonl", work / "generated.out"
    got = json.loads(ours.hadal(
        "eval", "--model", directory, "--task", write(task, items), "--output", output,
        "--max-answer-tokens", NEW_TOKENS, "--answer-pattern", PATTERN, "--answer-match", "last",
        *(x for p in IGNORED for x in ("--ignore-pattern", p)), "--ignore-case",
        "--dtype", "f32", "--json"))
    lines = [json.loads(line) for line in output.read_text().split("\n")[1:-1]]
    report.problems("outputs", [f"{a['output']!r}, theirs {b!r}"
                                for a, b in zip(lines, outputs, strict=True) if a["output"] != b])
    report.problems("answers", [f"{a['answer']!r}, theirs {b!r}"
                                for a, b in zip(lines, answers, strict=True) if a["answer"] != b])
    compare_shares(report, "exact_match", got, [
        float(any(without(a) == without(x) for x in item["answer"]))
        for a, item in zip(answers, items, strict=True)])


def check(report, directory, text, work):
    model, _ = theirs.load(directory, torch.float32)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    words = sorted({w for w in text.read_text(encoding="utf-8")[:20000].split() if w.isascii()})
    check_choices(report, directory, model, tokenizer, words, work)
    check_generated(report, directory, model, tokenizer, words, work)

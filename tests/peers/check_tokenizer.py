"""tokenizer.json as hadal writes it, in the `tokenizers` library and in transformers."""
# SPDX-License-Identifier: Apache-2.0
import json
import random
import unicodedata

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import ours

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "\t", " \t \n ", "a", " a", "a ", "In the beginning God created",
    "don't I'll we've it's O'Neil's 'quoted'", "0", "7 42 365 1234 12345 1234567890", "3.14159e-10",
    "1,000,000.00", "\u0661\u0662\u0663 \u0967\u0968\u0969", "\u00bd \u2163 x\u00b2", "x = y+1; //",
    "foo_bar __init__ CamelCase snake_case9", "<|", "<>", "!!!???...", "\u2014\u2018q\u2019\u2026",
    "line\r\nnext\r\n\r\n", "tabs\t\tand  two   three    four", "trailing   ", "   leading",
    "\u00a0\u2003\u3000wide\u200bzero\ufeffbom", "na\u00efve caf\u00e9", "nai\u0308ve cafe\u0301",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf",
    "\uc548\ub155\ud558\uc138\uc694", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600\U0001f680 ok\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7", "\U00020000\U0010ffff\ue000",
    "nul\x00bell\x07esc\x1b[0m", "\u0085\u2028\u2029", "\u0130\u0131\u00df\u1e9e\ufb01",
]
PIECES = ["the", "And", " God", "ing", "7", "2048", " ", "  ", "\n", "\t", "\r\n", ".", ",", "'s",
          "\u00e9", "e\u0301", "\u4e2d", "\u6587", "\U0001f525", "\u200d", "-", "_", "\u0416",
          "\u0660", "(", ")", "$", "\u20ac", "\u00a0", "\u3042", "\uac00", "\u0939\u093f"]


def texts_of(specials):
    rng = random.Random(5)
    for special in specials:
        yield from (special, f"a{special}b", f" {special} \n{special}{special}", special[:-1],
                    special.lower(), special.replace("|", "\uff5c"), f"x{special}7{special}\u00e9")
    yield from TEXTS
    for _ in range(60):
        yield "".join(rng.choice(PIECES + specials) for _ in range(rng.randint(1, 40)))
    for _ in range(60):
        points = (rng.randrange(0x20, limit) for limit in
                  rng.choices((0x80, 0x250, 0x3000, 0x10000, 0x110000), k=rng.randint(1, 30)))
        yield "".join(c for c in map(chr, points) if unicodedata.category(c) != "Cs")


def decode(tokenizer, ids):
    return ours.hadal("tokenizer", "decode", "--tokenizer", tokenizer, "--ids",
                      ",".join(map(str, ids)))[:-1]  # the newline that ends its output


def compare(report, name, directory, work):
    """`directory` holds tokenizer.json, and a checkpoint that AutoTokenizer can be given."""
    path = directory / "tokenizer.json"
    peer = Tokenizer.from_file(str(path))
    others = [PreTrainedTokenizerFast(tokenizer_file=str(path)),
              AutoTokenizer.from_pretrained(directory)]
    specials = [t["content"] for t in json.loads(path.read_text())["added_tokens"]]
    texts = list(texts_of(specials))
    report.begin(f"{name}, {len(texts)} texts")
    wrong_ids, wrong_text, wrong_auto, file = [], [], [], work / "piece.txt"
    for text in texts:
        file.write_bytes(text.encode())
        ids = json.loads(ours.hadal("tokenizer", "encode", "--tokenizer", path, "--file", file,
                                    "--json"))
        expected = peer.encode(text).ids
        if ids != expected:
            wrong_ids.append(f"{text!r}: ours {ids}, theirs {expected}")
        if any(other(text)["input_ids"] != ids for other in others):
            wrong_auto.append(f"{text!r}: {[other(text)['input_ids'] for other in others]}")
        back = decode(path, ids) if ids else b""
        if not back == text.encode() == peer.decode(ids, skip_special_tokens=False).encode():
            wrong_text.append(f"{text!r}: {back!r}")
    report.problems("encoded", wrong_ids)
    report.problems("transformers", wrong_auto)
    report.problems("decoded", wrong_text)

    # Any ids, so also bytes that are no UTF-8: the peer shows U+FFFD for what we keep.
    rng, size = random.Random(6), peer.get_vocab_size()
    lists = [[i] for i in range(size)] + [rng.choices(range(size), k=20) for _ in range(50)]
    report.problems("any ids", [
        str(ids) for ids in lists
        if decode(path, ids).decode(errors="replace") != peer.decode(ids, False)])

#!/usr/bin/env python3
"""Encoding speed of hadal and of Hugging Face tokenizers on one core, by processor time, in turns:

    HADAL=build/release/hadal build/peers-venv/bin/python bench/tokenizer.py \\
        --tokenizer TOKENIZER.json --text FILE [--text FILE ...] [--rounds 7]

The peer gets the text in documents of about 64 KiB, cut at line ends, which is faster for it than
one piece; ids of both are compared first. Prints a row of JSON for each text, then a table.
"""
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
import tokenizers  # noqa: E402  (reads the variables above)

HADAL = os.environ.get("HADAL", "build/release/hadal")
DOCUMENT_BYTES = 64 << 10


def documents(text):
    parts, size = [[]], 0
    for line in text.splitlines(keepends=True):
        if size > DOCUMENT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line.encode())
    return ["".join(part) for part in parts]


def hadal(*arguments):
    r = subprocess.run([HADAL, "tokenizer", *arguments], capture_output=True, check=True)
    return [json.loads(line) for line in r.stdout.decode().split("\n")[:-1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    o = parser.parse_args()
    peer = tokenizers.Tokenizer.from_file(o.tokenizer)
    texts = {name: documents(pathlib.Path(name).read_text(encoding="utf-8")) for name in o.text}
    for name, parts in texts.items():
        file = pathlib.Path("build") / "tokenizer-bench.jsonl"
        file.write_text("".join(json.dumps(part) + "\n" for part in parts), encoding="ascii")
        ids = hadal("encode", "--tokenizer", o.tokenizer, "--json-lines", str(file))
        file.unlink()
        assert ids == [peer.encode(p, add_special_tokens=False).ids for p in parts], name
    ours, theirs = ({name: [] for name in texts} for _ in range(2))
    for _ in range(o.rounds):
        for row in hadal("bench", "--tokenizer", o.tokenizer, "--repeat", "2", "--json",
                         *(x for name in texts for x in ("--text", name))):
            ours[row["text"]].append(row["encode_mb_per_cpu_second"]["p90"])
        for name, parts in texts.items():
            begin = time.process_time()
            for part in parts:
                peer.encode(part, add_special_tokens=False)
            size = sum(len(part.encode()) for part in parts)
            theirs[name].append(size / (time.process_time() - begin) / 1e6)
    table = []
    for name in texts:
        ratios = [a / b for a, b in zip(ours[name], theirs[name], strict=True)]
        row = {"bench": "tokenizer", "text": name, "rounds": o.rounds,
               "peer": f"tokenizers {tokenizers.__version__}",
               "mb_per_cpu_second": statistics.median(ours[name]),
               "peer_mb_per_cpu_second": statistics.median(theirs[name]),
               "ratio": statistics.median(ratios), "ratio_least": min(ratios)}
        print(json.dumps(row))
        table.append(f"{name:<28} {row['mb_per_cpu_second']:8.1f} MB/s   "
                     f"peer {row['peer_mb_per_cpu_second']:6.1f} MB/s   ratio {row['ratio']:.1f}")
    print("\n".join(table))


if __name__ == "__main__":
    main()

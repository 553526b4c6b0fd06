#!/usr/bin/env python3
"""Times `hadal serve` on the CPU: what a stream and eight of them cost; needs Python alone.

  scripts/cpu_serve.py streams PROGRAM OUT MODEL [ROUNDS]   one stream, hadal generate, eight streams
  scripts/cpu_serve.py one PROGRAM OUT MODEL [ROUNDS]       one stream and hadal generate alone
  scripts/cpu_serve.py prefix PROGRAM OUT MODEL             a prompt's first answer, and when repeated
  scripts/cpu_serve.py frontend PROGRAM OUT [ROUNDS]        the server without a model

MODEL is `hadal init --config configs/bench_cpu.json --seed 1 MODEL`. Rows of JSON go to
OUT/serve.jsonl. `streams` runs all in turn in every round, and measures the rate of memory between.
"""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import random
import statistics
import sys

from gpu_serve import ROOT, Costs, Machine, Server, prefix_row

OUTPUT_TOKENS = 33


def read_gbps(machine):
    """GB/s that both cores read from memory."""
    row = json.loads(machine.hadal("bench", "decode", "--config", ROOT / "configs/quickstart.json",
                                   "--samples", 2))
    return row["ceilings"]["read_gb_per_s"]


def streams(machine, model, rounds, eight):
    costs = Costs(json.loads((pathlib.Path(model) / "config.json").read_text(encoding="utf-8")))
    shape = {"prompt_tokens": 8, "vocab": costs.vocab, "output_tokens": OUTPUT_TOKENS}
    rng = random.Random(1)
    ids = ",".join(str(rng.randrange(2, costs.vocab)) for _ in range(8))
    rows = []
    with Server(machine, model, "--quiet", "--max-seqs", 8, "--context", 1024, "--chunk", 64,
                "--no-prefix-cache") as server:
        server.load(concurrency=1, requests=1, **shape)
        for r in range(rounds):
            # Rates after the first token.
            one = 1e3 / server.load(concurrency=1, requests=1, seed=r, **shape)["tpot_ms"]["p50"]
            alone = json.loads(machine.hadal(
                "generate", "--model", model, "--prompt-ids", ids, "--max-tokens", OUTPUT_TOKENS,
                "--ignore-eos", "--json"))["tokens_per_second"]
            rows.append({"one": one, "generate": alone, "http_over_generate": one / alone})
            if eight:
                before = read_gbps(machine)
                rate = 8e3 / server.load(concurrency=8, requests=8, seed=r, **shape)["tpot_ms"]["p50"]
                gbps = (before + read_gbps(machine)) / 2
                rows[-1].update(eight=rate, eight_over_one=rate / one, read_gbps=gbps,
                                eight_of_bandwidth=rate / 8 * 2 * costs.step(8) / (gbps * 1e9))
            machine.row("round", **rows[-1])
    goals = {"http_over_generate": 0.97, "eight_over_one": 2.0, "eight_of_bandwidth": 0.85}
    machine.row("medians", most_eight_over_one=8 * costs.step(1) / costs.step(8),
                goals={key: goal for key, goal in goals.items() if key in rows[0]},
                **{key: statistics.median(row[key] for row in rows) for key in rows[0]})


def prefix(machine, model):
    costs = Costs(json.loads((pathlib.Path(model) / "config.json").read_text(encoding="utf-8")))
    with Server(machine, model, "--quiet", "--context", 2048, "--max-seqs", 8) as server:
        server.load(concurrency=1, requests=1, prompt_tokens=64, vocab=costs.vocab, output_tokens=2)
        prefix_row(machine, server, costs, (1024, 1000))


def frontend(machine, rounds):
    rates = []
    for _ in range(rounds):
        row = json.loads(machine.hadal("bench", "frontend"))
        rates.append(row["parts_per_s"])
        machine.row("front end", **row)
    machine.row("front ends", chunks_per_s=statistics.median(rates), goal=50000)


def main():
    what = sys.argv[1] if len(sys.argv) > 3 else ""
    rest = sys.argv[4:]
    if what not in ("streams", "one", "prefix", "frontend") or what != "frontend" and not rest:
        print(__doc__, file=sys.stderr)
        return 2
    machine = Machine(sys.argv[2], sys.argv[3], device="cpu")
    if what == "frontend":
        frontend(machine, int(rest[0]) if rest else 3)
    elif what == "prefix":
        prefix(machine, rest[0])
    else:
        streams(machine, rest[0], int(rest[1]) if len(rest) > 1 else 2, eight=what == "streams")
    return 0


if __name__ == "__main__":
    sys.exit(main())

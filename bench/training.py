#!/usr/bin/env python3
"""Training speed of hadal and of Hugging Face transformers on PyTorch, in turns on one machine.

    HADAL=build/release/hadal build/peers-venv/bin/python bench/training.py configs/small.json --rounds 3

Both run the model of the config without its MTP module (transformers has none) on batches of the
config's size: forward, backward, clipping and AdamW in f32, on all cores. Prints a line of JSON:
medians of tokens/s of each, and the ratio of each round.
"""
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import torch
import transformers


def peer_step(config, batch, length):
    """A function that runs one optimizer step of the peer and returns its seconds."""
    model_config = transformers.DeepseekV3Config(**config)
    torch.manual_seed(1)
    model = transformers.DeepseekV3ForCausalLM(model_config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, config["vocab_size"], (batch, length))

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", help="a run config")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps of each in a round")
    args = parser.parse_args()
    hadal = os.environ.get("HADAL", "build/release/hadal")
    with open(args.config, encoding="utf-8") as file:
        run = json.load(file)
    run["model"]["num_nextn_predict_layers"] = 0
    batch, length = run["train"]["batch_sequences"], run["train"]["sequence_length"]
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    config = {key: value for key, value in run["model"].items() if key != "num_nextn_predict_layers"}
    step = peer_step(config, batch, length)
    step()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(run, file)
        file.flush()
        command = [hadal, "bench", "train", "--config", file.name, "--samples", str(args.steps)]
        ours, peer, percent = [], [], []
        for _ in range(args.rounds):
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours.append(row["tokens_per_s"])
            percent.append(row["percent_of_compute"])
            seconds = statistics.median(step() for _ in range(args.steps))
            peer.append(batch * length / seconds)
    ratios = [a / b for a, b in zip(ours, peer)]
    print(json.dumps({
        "bench": "training", "config": args.config, "threads": threads, "commit": row["commit"],
        "cpu": row["cpu"], "gflop_per_token": row["gflop_per_token"],
        "torch": torch.__version__, "transformers": transformers.__version__,
        "hadal_tokens_per_s": statistics.median(ours), "peer_tokens_per_s": statistics.median(peer),
        "percent_of_peak": statistics.median(percent), "ratio": statistics.median(ratios),
        "ratios": ratios}))


if __name__ == "__main__":
    main()

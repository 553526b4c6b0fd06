"""Runs every comparison with Hugging Face's libraries; exits 1 if one fails."""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import random
import sys
import tempfile

import torch
from transformers import FineGrainedFP8Config

import cases
import check_eval
import check_layout
import check_logits
import check_noticed
import check_strings
import check_tokenizer
import ours
import theirs
from report import Report

SPECIAL = ["training", "tokenizer", "eval", "strings", "layouts"]


def shake(directory, seed):
    """Initial norms are 1 and router biases 0, which would hide a wrong one: random values instead,
    written over ours in place."""
    generator = torch.Generator().manual_seed(seed)

    def change(name, values):
        noise = torch.randn(values.shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            return 0.1 * noise
        return 1.0 + 0.2 * noise if "norm" in name.split(".")[-2] else None

    ours.edit(directory, change)


def make(name, dtype, work, seed):
    config = work / f"{name}.json"
    config.write_text(json.dumps(cases.config_of(name)))
    directory = work / f"{name}-{dtype}"
    # One case in several files.
    shards = ["--shard-mib", "1"] if name == "whole_blocks" else []
    ours.hadal("init", "--config", config, "--seed", seed, "--dtype", dtype, *shards, directory)
    if shards and len(ours.weight_files(directory)) < 2:
        raise RuntimeError(f"{directory} is one file, not several")
    shake(directory, seed)
    return directory


def check_plain(report, name, dtype, work, seed):
    """An f32 or bf16 checkpoint."""
    report.begin(f"{name} {dtype}")
    directory = make(name, dtype, work, seed)
    model, problems = theirs.load(directory, torch.float32)
    report.problems("load", problems)
    found = check_logits.compare_f32(report, directory, model, work, seed)
    stored = model if dtype == "f32" else theirs.load(directory, torch.bfloat16)[0]
    saved, expected = check_layout.compare_with_saved(report, directory, stored, work)
    if model.config.num_nextn_predict_layers == 0:
        _, back = ours.generate(saved, found[0], check_logits.REPLY, "f32", work)
        report.figure("saved again", check_logits.distance(back, found[2]), check_logits.F32_BOUND)
    if name == "plain" and dtype == "f32":
        check_noticed.check_weights(report, directory, model, found, work)
        check_noticed.check_names(report, directory, expected, work)
    if dtype == "bf16":
        check_logits.fix_routing(directory, seed)
        exact, rounded = (theirs.load(directory, t)[0] for t in (torch.float32, torch.bfloat16))
        check_logits.compare_bf16(report, directory, exact, rounded, found[1], work,
                                  {"bf16": "bf16"})
    return expected


def check_fp8(report, name, dtype, work, seed, bf16_layout):
    """A block-FP8 checkpoint, decoded by the official formula; and by transformers where it can."""
    report.begin(f"{name} {dtype}")
    directory = make(name, dtype, work, seed)
    decoded = work / f"{directory.name}-decoded"
    report.problems("scales", theirs.decode_fp8(directory, decoded))
    if dtype == "fp8-ue8m0":
        scales = [t for k, t in ours.tensors(directory).items() if k.endswith("_scale_inv")]
        report.figure("ue8m0", sum(int((t.log2() != t.log2().round()).sum()) for t in scales), 0)
    report.problems("layout", check_layout.differences(
        ours.layout(directory), check_layout.as_fp8(bf16_layout)))
    model, problems = theirs.load(decoded, torch.float32)
    report.problems("load", problems)
    _, ids, logits, _ = check_logits.compare_f32(report, directory, model, work, seed)
    if name == "whole_blocks":
        decode = FineGrainedFP8Config(dequantize=True)
        peer, problems = theirs.load(directory, torch.float32, decode)
        report.problems("load as FP8", problems)
        report.figure("their FP8", check_logits.distance(theirs.logits(peer, ids), logits),
                      check_logits.F32_BOUND)
    check_logits.fix_routing(directory, seed)
    check_logits.fix_routing(decoded, seed)
    exact, rounded = (theirs.load(decoded, t)[0] for t in (torch.float32, torch.bfloat16))
    # Decoded to bf16, and kept in FP8.
    check_logits.compare_bf16(report, directory, exact, rounded, ids, work,
                              {"bf16": "bf16", "FP8": "auto"})
    if name == "whole_blocks":
        check_noticed.check_scale(report, directory, ids, theirs.logits(exact, ids), work)


def write_text(path):
    """Sentences of many scripts, so that the vocabulary has more than English in it."""
    rng = random.Random(7)
    words = [w for text in check_tokenizer.TEXTS for w in text.split()]
    common = [rng.choice("bcdfghklmnprst") + rng.choice("aeiou") + rng.choice(["", "n", "s", "rd"])
              for _ in range(60)]
    lines = []
    for _ in range(2500):
        line = [rng.choice(words if rng.random() < 0.1 else common) for _ in range(11)]
        lines.append(" ".join(line) + ".")
    path.write_text("\n".join(lines), encoding="utf-8", newline="")


def check_training(report, names, work):
    """The checkpoint of a training run, with its weights, moved biases and tokenizer."""
    text, tokenizer, run = work / "text.txt", work / "tokenizer", work / "run"
    write_text(text)
    ours.hadal("tokenizer", "train", "--input", text, "--vocab-size", 320, "--output", tokenizer)
    sets = {"train.output": str(run), "train.steps": 20, "train.bias_gamma": 0.02,
            "data.text": str(text), "data.tokenizer": str(tokenizer)}
    ours.hadal("train", "configs/resume_check.json",
               *(x for k, v in sets.items() for x in ("--set", f"{k}={json.dumps(v)}")))
    directory = (run / "checkpoints" / "latest").resolve()
    if "training" in names:
        report.begin("training run")
        still = [k for k, t in ours.tensors(directory).items()
                 if "e_score_correction_bias" in k and float(t.abs().max()) < 0.02]
        report.problems("still biases", still)
        model, problems = theirs.load(directory, torch.float32)
        report.problems("load", problems)
        check_logits.compare_f32(report, directory, model, work, 99)
        check_layout.compare_with_saved(report, directory, model, work)
    if "eval" in names:
        check_eval.check(report, directory, text, work)
    if "tokenizer" in names:
        check_tokenizer.compare(report, "tokenizer of the run", directory, work)
        larger = work / "larger"
        ours.hadal("tokenizer", "train", "--input", text, "--vocab-size", 700, "--output", larger)
        (larger / "config.json").write_bytes((directory / "config.json").read_bytes())
        check_tokenizer.compare(report, "tokenizer of 700", larger, work)


def check_own_vocabulary(report, work):
    text, tokenizer = work / "strings.txt", work / "strings"
    write_text(text)
    ours.hadal("tokenizer", "train", "--input", text, "--vocab-size", 700, "--output", tokenizer)
    check_strings.compare(report, "a vocabulary of ours", tokenizer / "tokenizer.json", work, 20)


def main(names):
    known = list(cases.CASES) + SPECIAL
    for name in names:
        if name not in known:
            sys.exit(f"peers: there is no case {name}; choose from: {' '.join(known)}")
    names = names or known
    torch.set_num_threads(2)
    report = Report()
    with tempfile.TemporaryDirectory() as temporary:
        for seed, name in enumerate(cases.CASES, 1):
            if name not in names:
                continue
            work = pathlib.Path(temporary) / name
            work.mkdir()
            check_plain(report, name, "f32", work, seed)
            layout = check_plain(report, name, "bf16", work, seed)
            for dtype in ("fp8", "fp8-ue8m0"):
                check_fp8(report, name, dtype, work, seed, layout)
        work = pathlib.Path(temporary)
        if "layouts" in names:
            check_layout.compare_with_goldens(report, work)
        if {"training", "tokenizer", "eval"} & set(names):
            check_training(report, names, work)
        if "strings" in names:
            check_own_vocabulary(report, work)
            check_strings.check_deepseek(report, work)
    return report.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
"""How far the losses of scripts/fp8_training.sh's runs are from BF16's: a table, and a picture.

    bench/fp8_losses.py DIR [PICTURE.png]

Differences are of losses smoothed with an exponential average of 0.9, relative to the run `bf16`,
over the last half of the steps. The picture needs matplotlib.
"""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import sys

RUNS = {
    "bf16_again": "BF16, other micro-batches (noise)",
    "fp8": "FP8",
    "fp8_tiles": "FP8, 128 x 128 gradient tiles",
    "fp8_short_sums": "FP8, sums in 14 bits",
}
KEEP = 0.9  # of the exponential average


def losses(run):
    """Training losses by step, smoothed, and held-out losses by step."""
    smooth, held_out, average = {}, {}, None
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "loss" in row:
            average = row["loss"] if average is None else KEEP * average + (1 - KEEP) * row["loss"]
            smooth[row["step"]] = average
        if "held_out_loss" in row:
            held_out[row["step"]] = row["held_out_loss"]
    return smooth, held_out


def percent(ours, theirs, steps):
    return [100 * (ours[s] / theirs[s] - 1) for s in steps if s in ours and s in theirs]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    directory = pathlib.Path(sys.argv[1])
    if not (directory / "bf16" / "metrics.jsonl").exists():
        sys.exit(f"fp8_losses.py: {directory} has no run bf16; make it with scripts/fp8_training.sh run")
    base, base_held_out = losses(directory / "bf16")
    half = [s for s in base if s > max(base) / 2]
    differences = {}
    print("| run | training, mean | training, largest | held out, last five, largest | held out, at the end |")
    print("|---|---|---|---|---|")
    for name, title in RUNS.items():
        if not (directory / name / "metrics.jsonl").exists():
            continue
        ours, held_out = losses(directory / name)
        train = percent(ours, base, half)
        held = percent(held_out, base_held_out, sorted(base_held_out)[-5:])
        differences[title] = (half, train)
        print(f"| {title} | {sum(train) / len(train):+.3f}% | {max(map(abs, train)):.3f}% "
              f"| {max(map(abs, held), default=float('nan')):.3f}% | {held[-1] if held else float('nan'):+.3f}% |")
    if len(sys.argv) == 3:
        draw(base, differences, sys.argv[2])


def draw(base, differences, path):
    try:
        import matplotlib
    except ModuleNotFoundError:
        sys.exit("fp8_losses.py: the picture needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6))
    above.plot(list(base), list(base.values()), label="BF16")
    above.set_ylabel("training loss")
    above.legend()
    for title, (steps, values) in differences.items():
        below.plot(steps[:len(values)], values, label=title)
    below.set_ylabel("difference from BF16, %")
    below.set_xlabel("step")
    below.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

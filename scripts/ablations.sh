#!/usr/bin/env bash
# Runs the ablations of docs/ablations.md: configs/ablations/base.json and what each other file there changes in
# it (a JSON merge patch), with every seed, one after the other; then prints their table.
#   scripts/ablations.sh [--seeds "1 2"] [--dir runs/ablations] [--table]
# Runs that are done are not done again. --table only prints.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

seeds="1 2" dir=runs/ablations table=""
while [ $# -gt 0 ]; do
  case "$1" in
    --seeds) seeds=${2:?"--seeds needs a list"}; shift 2 ;;
    --dir) dir=${2:?"--dir needs a directory"}; shift 2 ;;
    --table) table=1; shift ;;
    *) echo "ablations.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
hadal=${HADAL:-build/release/hadal}
names="base v2_gate gamma_zero no_mtp"

if [ -z "$table" ]; then
  [ -d data/mixture/bible ] || scripts/prepare_mixture.sh
  mkdir -p "$dir"
  for seed in $seeds; do
    for name in $names; do
      run=$dir/$name-$seed
      [ ! -e "$run/finished" ] || continue
      rm -rf "$run"
      python3 - "$name" "$run.json" <<'EOF_MERGE'
import json, sys
def merge(base, patch):
    for key, value in patch.items():
        base[key] = merge(base.get(key, {}), value) if isinstance(value, dict) else value
    return base
base = json.load(open("configs/ablations/base.json"))
patch = {} if sys.argv[1] == "base" else json.load(open(f"configs/ablations/{sys.argv[1]}.json"))
json.dump(merge(base, patch), open(sys.argv[2], "w"), indent=2)
EOF_MERGE
      "$hadal" train "$run.json" --set "train.output=\"$run\"" --set "train.seed=$seed" >"$run.log"
      tail -n 1 "$run.log"
      touch "$run/finished"
    done
  done
fi

python3 - "$dir" "$seeds" $names <<'EOF_TABLE'
import json, sys
dir, seeds, names = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
print("| run | seed | held-out loss | bits per byte | MaxVio held out | MaxVio of a step, last tenth | MTP loss held out |")
print("|---|---|---|---|---|---|---|")
for name in names:
    for seed in seeds:
        lines = [json.loads(line) for line in open(f"{dir}/{name}-{seed}/metrics.jsonl")]
        steps = [line for line in lines if "loss" in line]
        end = [line for line in lines if "held_out_loss" in line][-1]
        tail = steps[-len(steps) // 10:]
        vio = sum(line["max_violation"] for line in tail) / len(tail)
        mtp = ", ".join(f"{x:.4f}" for x in end["held_out_mtp_loss"]) or "-"
        print(f"| {name} | {seed} | {end['held_out_loss']:.4f} | {end['held_out_bits_per_byte']:.4f} | "
              f"{end['held_out_max_violation']:.3f} | {vio:.3f} | {mtp} |")
EOF_TABLE

#!/usr/bin/env bash
# The main job on the CPU: install, build, take a text, train a tokenizer and a small DeepSeek-V3 on it,
# report held-out bits per byte, and generate with and without MTP speculation.
#   scripts/quickstart.sh [--text FILE]
# Every stage that is complete is skipped, and training goes on from its last checkpoint: run it again
# after an interruption.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

text="" name=quickstart
while [ $# -gt 0 ]; do
  case "$1" in
    --text)
      [ $# -ge 2 ] || { echo "quickstart.sh: --text needs a file" >&2; exit 2; }
      text=$2; shift 2
      [ -r "$text" ] || { echo "quickstart.sh: cannot read $text" >&2; exit 1; }
      name="quickstart-$(basename "$text" | sed 's/\.[^.]*$//; s/[^A-Za-z0-9_-]/_/g')" ;;
    *) echo "quickstart.sh: unknown argument $1; use --text FILE or nothing" >&2; exit 2 ;;
  esac
done

say() { printf '\n== %s\n' "$*"; }
config=configs/quickstart.json
hadal=build/release/hadal
vocab=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$config" | head -n 1)
held_out=$(sed -n 's/.*"held_out": *\([0-9.]*\).*/\1/p' "$config" | head -n 1)
begin=$SECONDS

say "building $hadal"
make --no-print-directory build

mkdir -p data runs
if [ -z "$text" ]; then
  text=data/kjv.txt
  if [ ! -s "$text" ]; then
    say "taking the King James text"
    scripts/get_text.sh "$text"
  fi
fi

# A short text has fewer pairs that occur twice than the config's vocabulary needs.
most=$((300 + $(wc -c <"$text") / 500))
[ "$vocab" -le "$most" ] || vocab=$most
tokenizer=data/$name
if [ ! -s "$tokenizer/tokenizer.json" ]; then
  say "training a tokenizer of $vocab tokens on the training part of $text"
  $hadal tokenizer train --input "$text" --held-out "$held_out" --vocab-size "$vocab" --output "$tokenizer"
fi

run=runs/$name
train=("$hadal" train "$config" --set "data.text=\"$text\"" --set "data.tokenizer=\"$tokenizer\"" --set "train.output=\"$run\"")
if [ ! -e "$run/finished" ]; then
  [ -e "$run/checkpoints/latest" ] && train+=(--resume)
  say "training a small DeepSeek-V3 (progress in $run/metrics.jsonl)"
  started=$SECONDS
  "${train[@]}" | tee "$run.log"
  # An interrupted run ends cleanly, but is not finished.
  tail -n 1 "$run.log" | grep -q '^trained ' || { echo "stopped; run this again to go on"; exit 0; }
  echo "training took $((SECONDS - started)) s"
  touch "$run/finished"
fi

say "a paragraph, greedy, without and with MTP speculation"
prompt="And it came to pass"
for n in 0 1; do
  $hadal generate --model "$run" --prompt "$prompt" --max-tokens 160 --ignore-eos --json --speculate $n >"$run.speculate$n.json"
done
python3 - "$prompt" "$run.speculate0.json" "$run.speculate1.json" <<'EOF_PYTHON'
import json, sys
plain, fast = (json.load(open(path, encoding="utf-8")) for path in sys.argv[2:])
print(sys.argv[1] + plain["text"])
print()
print(f"without speculation {plain['tokens_per_second']:.0f} tokens/s, with it {fast['tokens_per_second']:.0f}; "
      f"the first draft was accepted {100 * fast['acceptance']:.1f}% of the time")
if plain["token_ids"] != fast["token_ids"]:
    sys.exit("quickstart.sh: the two texts differ, which must not happen; please report it")
EOF_PYTHON

say "a paragraph, sampled"
printf 'In those days'
$hadal generate --model "$run" --prompt "In those days" --max-tokens 120 --temperature 0.8 --top-p 0.95 --seed 7 --speculate 1 --ignore-eos

say "done in $((SECONDS - begin)) s"
tail -n 1 "$run.log"
cat <<EOF_NEXT
What to type next:
  $hadal generate --model $run --prompt "And God said" --temperature 0.8 --top-p 0.95 --seed 1
  $hadal info --model $run
  make quickstart TEXT=/path/to/your.txt
EOF_NEXT

#!/usr/bin/env bash
# How near training in FP8 is to BF16: 500 steps in BF16, and from their checkpoint 1,500 steps in BF16, BF16 with
# other micro-batches (the noise), FP8, and two ablations of FP8, on Linux's documentation and one GPU.
#
#   scripts/fp8_training.sh text OUT      writes the text (.rst and .txt files of Debian's linux-doc-6.1)
#   scripts/fp8_training.sh run DIR TEXT  trains; needs a GPU of Hopper's kind, or more (GPUS="0 1 2")
#   scripts/fp8_training.sh table DIR     the differences of the losses (bench/fp8_losses.py)
#
# GPUS=NUMBERS (one: 0), HADAL=PROGRAM, STEPS=1500, FIRST=500 and MORE="--set key=value ..." change what is run.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

hadal=${HADAL:-build/cuda/hadal} steps=${STEPS:-1500} first=${FIRST:-500}
usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

write_text() {
  local out
  out=$(realpath "$1")
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get download linux-doc-6.1 >/dev/null 2>&1 && dpkg-deb -x ./*.deb .) ||
    { echo "fp8_training.sh: cannot download Debian's package linux-doc-6.1; is it in your sources?" >&2; exit 1; }
  cd "$work/usr/share/doc/linux-doc-6.1/Documentation"
  find . \( -name '*.rst' -o -name '*.txt' -o -name '*.rst.gz' -o -name '*.txt.gz' \) \
    -not -path './translations/*' -print0 | LC_ALL=C sort -z | xargs -0 zcat -f >"$out.tmp"
  mv "$out.tmp" "$out"
  echo "$out: $(wc -c <"$out") bytes"
}

# train NAME STEPS ARGUMENT...: a run that is there is not done again.
train() {
  local name=$1 count=$2
  shift 2
  [ ! -e "$dir/$name/finished" ] || return 0
  rm -rf "${dir:?}/$name"
  # shellcheck disable=SC2086
  "$hadal" train configs/train_300m.json --set model.vocab_size=4096 --set "data.text=\"$text\"" \
    --set "data.tokenizer=\"$dir/tokenizer\"" --set data.held_out=0.05 --set train.batch_sequences=6 \
    --set "train.steps=$count" --set "train.output=\"$dir/$name\"" "$@" ${MORE:-} >"$dir/$name.log" ||
    { tail -n 3 "$dir/$name.log" >&2; exit 1; }
  touch "$dir/$name/finished"
  echo "$name: $(tail -n 1 "$dir/$name/metrics.jsonl" | grep -o '"step":[0-9]*')"
}

run_all() {
  dir=$1 text=$2
  mkdir -p "$dir"
  [ -d "$dir/tokenizer" ] || "$hadal" tokenizer train --input "$text" --held-out 0.05 --vocab-size 4096 \
    --output "$dir/tokenizer"
  train start "$first" --set 'train.lr={"peak":1e-3,"final":2e-4,"warmup_steps":100}'
  from() {
    local name=$1
    shift
    train "$name" "$steps" --set train.seed=2 --set 'train.lr={"peak":2e-4,"final":2e-5,"warmup_steps":20}' \
      --set "train.init_from=\"$dir/start/checkpoints/latest\"" "$@"
  }
  run_one() {
    case "$1" in
      bf16) from bf16 ;;
      fp8) from fp8 --set 'train.precision="fp8"' ;;
      bf16_again) from bf16_again --set train.micro_batch_sequences=3 ;;
      fp8_tiles) from fp8_tiles --set 'train.precision={"gradient_tiles":"128x128"}' ;;
      fp8_short_sums) HADAL_FP8_SHORT_SUMS=1 from fp8_short_sums --set 'train.precision="fp8"' ;;
    esac
  }
  # Each GPU takes every n-th run.
  local runs=(bf16 fp8 bf16_again fp8_tiles fp8_short_sums) gpus i pids=() status=0
  read -ra gpus <<<"${GPUS:-0}"
  for ((i = 0; i < ${#gpus[@]}; ++i)); do
    (
      export CUDA_VISIBLE_DEVICES=${gpus[i]}
      for ((r = i; r < ${#runs[@]}; r += ${#gpus[@]})); do run_one "${runs[r]}"; done
    ) &
    pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || status=1; done
  return $status
}

case "${1:-}" in
  text) [ $# -eq 2 ] || usage; write_text "$2" ;;
  run) [ $# -eq 3 ] || usage; run_all "$2" "$3" ;;
  table) [ $# -eq 2 ] || usage; python3 bench/fp8_losses.py "$2" ;;
  *) usage ;;
esac

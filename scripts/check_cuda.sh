#!/usr/bin/env bash
# Checks the CUDA backend on a machine with a GPU: every op against the CPU, the goldens in f32, f64,
# bf16 and fp8, generation against the CPU's, and training against the CPU's and against itself.
#
#   scripts/check_cuda.sh [BUILD]     BUILD holds hadal and ops_cuda_test; default build/cuda
#
# Build first: cmake --preset cuda && cmake --build --preset cuda --target hadal ops_cuda_test
# SPDX-License-Identifier: Apache-2.0
set -uo pipefail
cd "$(dirname "$0")/.." || exit

build=${1:-build/cuda}
hadal=$build/hadal
ops_test=$build/tests/ops_cuda/ops_cuda_test
[ -x "$ops_test" ] || ops_test=$build/ops_cuda_test
for program in "$hadal" "$ops_test"; do
  if [ ! -x "$program" ]; then
    echo "check_cuda: $program is missing; see the build commands at the top of this script" >&2
    exit 1
  fi
done

summary=()
failed=0
# run NAME COMMAND...: the output is shown where the command fails.
run() {
  local name=$1 output status start=$SECONDS
  shift
  output=$("$@" 2>&1)
  status=$?
  if [ $status -eq 0 ]; then
    summary+=("passed  $name ($((SECONDS - start)) s)")
  else
    echo "---- $name"
    echo "$output" | tail -n 40
    summary+=("FAILED  $name")
    failed=1
  fi
}

# The same tokens on both devices, with and without speculation, greedy and sampled.
same_tokens() {
  local model=$1 ids=5,9,30,7,12 device
  shift
  for device in cpu cuda; do
    "$hadal" generate --model "$model" --prompt-ids $ids --max-tokens 48 --ignore-eos --json \
      --device $device "$@" | grep -A 60 token_ids | tr -d ' \n' | sed 's/].*//' || return 1
    echo
  done | uniq | wc -l | grep -qx 1
}

# The same tokens in bf16 whatever is drafted and however the prompt is cut: the invariant mode.
invariant_tokens() {
  local model=$1 ids=5,9,30,7,12,40,41,8 options
  for options in "" "--speculate 1" "--speculate 3" "--chunk 3" "--chunk 1 --speculate 2"; do
    # shellcheck disable=SC2086
    "$hadal" generate --model "$model" --prompt-ids $ids --max-tokens 48 --ignore-eos --json \
      --device cuda --dtype bf16 $options | grep -A 60 token_ids | tr -d ' \n' | sed 's/].*//' ||
      return 1
    echo
  done | uniq | wc -l | grep -qx 1
}

# Loss of every step of a run of the quickstart's model over this repository's own text.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
train_losses() {
  local name=$1 device=$2 dtype=$3 steps=$4
  shift 4
  "$hadal" train configs/quickstart.json --set "data.text=\"$work/text\"" \
    --set "data.tokenizer=\"$work/tokenizer\"" --set "train.output=\"$work/$name\"" \
    --set train.device=$device --set train.dtype=$dtype --set train.steps=$steps \
    --set train.eval_every=0 --set train.checkpoint_every=15 "$@" >"$work/$name.log" 2>&1 ||
    { tail -n 3 "$work/$name.log"; return 1; }
  grep -o '"loss":[^,]*' "$work/$name/metrics.jsonl" | cut -d: -f2 >"$work/$name.losses"
}
make_text() {
  cat ./*.md docs/*.md src/*/*.h src/*/*.cc >"$work/text" &&
    "$hadal" tokenizer train --input "$work/text" --held-out 0.05 --vocab-size 2048 \
      --output "$work/tokenizer"
}
# Largest relative difference of the losses of two runs over their first STEPS.
distance() {
  local steps=$3
  paste <(head -n "$steps" "$work/$1.losses") <(head -n "$steps" "$work/$2.losses") | awk -v steps="$steps" '
    { d = $1 > $2 ? $1 - $2 : $2 - $1; if (d / $1 > worst) worst = d / $1 }
    END { print (NR == steps ? worst : 1) }'
}
# The first 30 steps within 1e-4 of the CPU's, and 100 no further apart than twice what CPU runs are that differ
# in rounding alone (other instructions, or the batch in other parts): on some texts a choice of expert flips
# early, and the losses part.
train_as_cpu() {
  train_losses cpu cpu f32 100 && train_losses cuda cuda f32 100 &&
    HADAL_ISA=portable train_losses cpu_portable cpu f32 100 &&
    train_losses cpu_parts cpu f32 100 --set train.micro_batch_sequences=1 || return 1
  local steps cuda portable parts
  for steps in 30 100; do
    cuda=$(distance cpu cuda $steps) portable=$(distance cpu cpu_portable $steps)
    parts=$(distance cpu cpu_parts $steps)
    echo "$steps steps, largest relative difference of the loss: CUDA $cuda, CPU with portable kernels" \
      "$portable, with micro-batches of one sequence $parts" | tee -a "$work/as_cpu"
    awk -v a="$cuda" -v b="$portable" -v c="$parts" -v least="$([ "$steps" -eq 30 ] && echo 1e-4 || echo 0)" \
      'BEGIN { if (c > b) b = c; exit !(a < least || a <= 2 * b) }' || return 1
  done
}
# Twice the same bits, and the same again when the second run goes on from its checkpoint of step 15.
train_exact() {
  local same=1 dtype=$1
  shift
  train_losses first cuda "$dtype" 30 "$@" && train_losses second cuda "$dtype" 30 "$@" &&
    cmp "$work/first.losses" "$work/second.losses" &&
    rm -r "$work/second/checkpoints/step_00000030" &&
    ln -sfn step_00000015 "$work/second/checkpoints/latest" &&
    train_losses second cuda "$dtype" 30 "$@" --resume && cmp "$work"/{first,second}.losses &&
    cmp "$work"/{first,second}/checkpoints/latest/model.safetensors &&
    cmp "$work"/{first,second}/checkpoints/latest/optimizer.safetensors && same=0
  rm -rf "$work"/{first,second}
  return $same
}

# The plain kernels run beside the others, as the CPU's part takes most of the time.
(
  HADAL_CUDA_PLAIN=1 "$ops_test" --gtest_brief=1 >"$work/plain" 2>&1
  echo $? >"$work/plain.status"
) &
plain_ops() {
  until [ -s "$work/plain.status" ]; do sleep 0.2; done
  cat "$work/plain"
  return "$(cat "$work/plain.status")"
}
run "every op against the CPU" "$ops_test" --gtest_brief=1
run "every op against the CPU, plain kernels" plain_ops
for case in base odd v3_heads; do
  model=tests/goldens/$case
  for golden in "$model"/golden.safetensors "$model"/train.safetensors; do
    [ -f "$golden" ] || continue
    for dtype in f32 f64 bf16 fp8; do
      run "verify $golden in $dtype" \
        "$hadal" verify --model "$model" --golden "$golden" --dtype $dtype --device cuda
    done
  done
  golden=$model/golden.safetensors
  run "verify $golden in bf16, --numerics fastest" "$hadal" verify --model "$model" \
    --golden "$golden" --dtype bf16 --device cuda --numerics fastest
  run "verify $golden in bf16, --kv-cache fp8" "$hadal" verify --model "$model" \
    --golden "$golden" --dtype bf16 --device cuda --kv-cache fp8
  run "verify $golden in bf16, plain kernels" env HADAL_CUDA_PLAIN=1 "$hadal" verify \
    --model "$model" --golden "$golden" --dtype bf16 --device cuda
  run "generate $case: in bf16 the same tokens with drafts and chunks" invariant_tokens "$model"
  run "generate $case: the CPU's tokens" same_tokens "$model" --dtype f32
  run "generate $case: sampled" same_tokens "$model" --dtype f32 --temperature 0.8 --top-p 0.9
done
run "generate base: speculating" same_tokens tests/goldens/base --dtype f32 --speculate 2

# 256 experts in 8 groups with DeepSeek-V3's head sizes: CUDA in f32 against the CPU in f64.
many_experts() {
  "$hadal" init --config configs/experts_256.json --seed 1 "$work/experts" &&
    "$hadal" verify --model "$work/experts" --dtype f64 --record "$work/experts.safetensors" &&
    "$hadal" verify --model "$work/experts" --golden "$work/experts.safetensors" --device cuda
}
run "256 experts: CUDA in f32 against the CPU in f64" many_experts
rm -rf "$work/experts" "$work/experts.safetensors"

run "training: a text and a tokenizer" make_text
run "training: 30 and 100 steps as on the CPU" train_as_cpu
run "training: the same bits again and after a stop, f32" train_exact f32
run "training: the same bits again and after a stop, bf16" train_exact bf16
run "training: the same bits again and after a stop, fp8" train_exact bf16 \
  --set 'train.precision="fp8"'

printf '%s\n' "${summary[@]}"
[ ! -s "$work/as_cpu" ] || cat "$work/as_cpu"
[ $failed -eq 0 ] && echo "check_cuda: passed" || echo "check_cuda: FAILED"
exit $failed

#!/usr/bin/env bash
# Ranks on GPUs: built here, checked and timed on a machine with two GPUs or more. On a machine with one,
# two ranks share it over a stand-in for NCCL (tests/dist/fake_nccl.cc): checked, not timed.
#
#   scripts/gpu_ranks.sh pack       builds, and puts stripped programs in build/gpu_ranks
#   scripts/gpu_ranks.sh run OUT    where the GPUs are, from a copy of this tree: checks, then figures,
#                                   within 10 minutes; logs and rows go to OUT. Needs no compiler.
#   scripts/gpu_ranks.sh run OUT STEP...   some of: links nccl model mesh comm kill split train
# TYPES=bf16,fp8 limits the types of mesh; CUDA_VISIBLE_DEVICES the GPUs.
# HADAL_NCCL names NCCL's library; without it, that of the loader or of python3's nvidia-nccl package.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

programs=build/gpu_ranks
hadal=$programs/hadal

usage() {
  sed -n '5,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

pack() {
  cmake --preset cuda >/dev/null
  cmake --build --preset cuda --target hadal dist_nccl_test parallel_check ops_cuda_test
  mkdir -p "$programs"
  strip -o "$hadal" build/cuda/hadal
  strip -o "$programs/nccl_test" build/cuda/tests/dist_nccl_test
  strip -o "$programs/parallel_check" build/cuda/tests/parallel_check
  strip -o "$programs/ops_cuda_test" build/cuda/tests/ops_cuda/ops_cuda_test
  strip -o "$programs/libfake_nccl.so" build/cuda/tests/libfake_nccl.so
  du -sh "$programs"
}

find_nccl() {
  if [ "$gpus" -eq 1 ]; then
    export HADAL_SHARE_GPUS=1 HADAL_NCCL=$PWD/$programs/libfake_nccl.so
    return 0
  fi
  if [ -n "${HADAL_NCCL:-}" ] || ldconfig -p 2>/dev/null | grep "libnccl\\.so\\.2" >/dev/null; then return 0; fi
  HADAL_NCCL=$(python3 -c 'import nvidia.nccl, glob
print(glob.glob(list(nvidia.nccl.__path__)[0] + "/lib/libnccl.so.2")[0])' 2>/dev/null) ||
    HADAL_NCCL=$(find /opt /usr/local /usr/lib -name libnccl.so.2 -print -quit 2>/dev/null)
  [ -n "$HADAL_NCCL" ] || { echo "gpu_ranks.sh: there is no libnccl.so.2; set HADAL_NCCL" >&2; exit 1; }
  export HADAL_NCCL
}

# ---- steps ---------------------------------------------------------------------------------------

links() { nvidia-smi && nvidia-smi topo -m; }

nccl() {
  "$programs/ops_cuda_test" --gtest_brief=1 --gtest_filter='*Ranks*:*Hops*:*LayoutAndRows*' &&
    "$programs/nccl_test" --gtest_filter='Gpus/*:NcclLibrary.*'
}

mesh() {
  "$programs/parallel_check" --device cuda --ranks "$ranks" --types "${TYPES:-f64,f32,bf16,fp8}" --fast
}

# A model shared by ranks: decode against the golden, and the tokens of one GPU, with and without drafts.
model() {
  local path=tests/goldens/base dtype options many
  for dtype in f64 f32 bf16; do
    "$hadal" verify --model $path --golden $path/golden.safetensors --dtype $dtype --device cuda \
      --ranks "$ranks" || return 1
  done
  ids() {
    "$hadal" generate --model $path --prompt-ids 5,9,30,7,12 --max-tokens 48 --ignore-eos --json \
      --device cuda --dtype f32 "$@" 2>/dev/null | grep -A 60 token_ids | tr -d ' \n' | sed 's/].*//'
  }
  for options in "" "--speculate 2" "--temperature 0.8 --top-p 0.9"; do
    # shellcheck disable=SC2086
    many=$(ids --ranks "$ranks" $options)
    # shellcheck disable=SC2086
    if [ -z "$many" ] || [ "$many" != "$(ids $options)" ]; then
      echo "other tokens: $options"
      return 1
    fi
  done
  echo "$ranks ranks: the tokens of one"
}

comm() { "$hadal" bench comm --device cuda --ranks "$gpus" --samples 5; }

# hadal train CONFIG over this repository's own text; the last words of a failure are shown.
make_text() {
  [ -s "$work/tokenizer/tokenizer.json" ] && return 0
  cat ./*.md docs/*.md src/*/*.h src/*/*.cc >"$work/text" &&
    "$hadal" tokenizer train --input "$work/text" --held-out 0.02 --vocab-size 2048 \
      --output "$work/tokenizer"
}
train_run() {
  local name=$1 config=$2
  shift 2
  "$hadal" train "$config" --set "data.text=\"$work/text\"" \
    --set "data.tokenizer=\"$work/tokenizer\"" --set "train.output=\"$work/$name\"" \
    --set train.device=cuda --set train.dtype=bf16 --set train.eval_every=0 "$@" \
    >"$work/$name.log" 2>&1
}
losses() { grep -o '"loss":[^,]*' "$work/$1/metrics.jsonl" | cut -d: -f2; }
state() { cat "$work/$1"/checkpoints/latest/*.safetensors | sha256sum; }

# A rank that is killed in a collective is named, and --resume goes on to the same weights.
kill_rank() {
  local mesh=(--set parallel.dp="$ranks" --set parallel.ep="$ranks" --set train.batch_sequences="$((4 * ranks))")
  # A checkpoint is awaited before the next one begins: that of step 2 is whole when step 4 begins.
  local small=(configs/quickstart.json --set train.steps=8 --set train.checkpoint_every=1)
  make_text || return 1
  train_run whole "${small[@]}" "${mesh[@]}" || { tail -n 3 "$work/whole.log"; return 1; }
  if HADAL_SABOTAGE=die_in_collective train_run killed "${small[@]}" "${mesh[@]}"; then
    echo "nothing failed"; return 1
  fi
  tail -n 1 "$work/killed.log"
  grep -q 'rank 1 failed at step 4, in .*: it was killed by signal 9' "$work/killed.log" || return 1
  train_run killed "${small[@]}" "${mesh[@]}" --resume || { tail -n 3 "$work/killed.log"; return 1; }
  [ "$(state whole)" = "$(state killed)" ] && echo "resumed: the same weights and moments"
}

# Experts' rows that do not fit: steps are done again with halves of the micro-batches, and the losses stay.
split() {
  local mesh=(--set parallel.dp="$ranks" --set parallel.ep="$ranks" --set train.batch_sequences="$((8 * ranks))")
  local small=(configs/quickstart.json --set train.steps=6 --set train.micro_batch_sequences=4 "${mesh[@]}")
  local exchange
  make_text || return 1
  for exchange in messages windows; do
    rm -rf "${work:?}"/fits "$work"/halves
    train_run fits "${small[@]}" --set parallel.exchange=$exchange || { tail -n 3 "$work/fits.log"; return 1; }
    train_run halves "${small[@]}" --set parallel.exchange=$exchange --set parallel.row_capacity=0.6 ||
      { tail -n 3 "$work/halves.log"; return 1; }
    grep -q '"splits":1' "$work/halves/metrics.jsonl" || { echo "no step was split"; return 1; }
    paste <(losses fits) <(losses halves) | awk -v exchange=$exchange '
      { d = $1 > $2 ? $1 - $2 : $2 - $1; if (d / $1 > most) most = d / $1 }
      END { printf "%s: 6 steps in halves, losses apart by %.1e\n", exchange, most; exit !(NR == 6 && most < 3e-3) }' ||
      return 1
  done
}

# Tokens a second of one GPU and of all, with the same tokens a GPU; and the losses of one GPU and
# two with the same batch.
rate() {
  grep -o '"tokens_per_second":[^,}]*' "$work/$1/metrics.jsonl" | cut -d: -f2 | tail -n 8 | sort -g |
    awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}
train() {
  local name large=(configs/train_300m.json --set train.steps=16 --set model.vocab_size=2048)
  local small=(configs/quickstart.json --set train.steps=20 --set train.batch_sequences=8)
  make_text || return 1
  run_one() {
    name=$1
    shift
    train_run "$name" "$@" || { tail -n 3 "$work/$name.log"; return 1; }
    echo "{\"bench\": \"train\", \"run\": \"$name\", \"gpus\": ${name%%_*}, \"tokens_per_second\": $(rate "$name"), \"losses\": [$(losses "$name" | paste -sd,)]}"
    rm -rf "${work:?}/$name/checkpoints"
  }
  run_one 1_quickstart "${small[@]}" &&
    run_one "${gpus}_quickstart_dp" "${small[@]}" --set parallel.dp="$gpus" &&
    run_one "${gpus}_quickstart_ep" "${small[@]}" --set parallel.dp="$gpus" --set parallel.ep="$gpus" &&
    run_one 1_300m "${large[@]}" &&
    run_one "${gpus}_300m_dp" "${large[@]}" --set parallel.dp="$gpus" \
      --set train.batch_sequences="$((16 * gpus))" --set train.micro_batch_sequences=16 &&
    run_one "${gpus}_300m_ep" "${large[@]}" --set parallel.dp="$gpus" --set parallel.ep="$gpus" \
      --set train.batch_sequences="$((16 * gpus))" --set train.micro_batch_sequences=16
}

# Every step runs, whatever those before it gave; the last line says how many failed.
run() {
  local out=$1 failed=0 begin=$SECONDS
  shift
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  gpus=$(nvidia-smi -L | grep -c '^GPU')
  [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || gpus=$(echo "$CUDA_VISIBLE_DEVICES" | tr , '\n' | grep -c .)
  [ "$gpus" -ge 1 ] || { echo "gpu_ranks.sh: this machine has no GPU" >&2; exit 1; }
  ranks=$((gpus > 1 ? gpus : 2))
  find_nccl
  export gpus ranks work
  # A step that hangs is ended, its ranks with it; so is one whose script is ended.
  running=
  trap '[ -z "$running" ] || kill "$running"; exit 143' TERM INT
  step() {
    local name=$1 limit=$2 status=0 start=$SECONDS
    [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return 0
    timeout -k 5 "$limit" scripts/gpu_ranks.sh step "$name" >"$out/$name.txt" 2>&1 &
    running=$!
    wait "$running" || status=$?
    running=
    echo "$name: exit $status ($((SECONDS - start)) s)"
    tail -n 3 "$out/$name.txt" | sed 's/^/    /' | cut -c1-240
    [ $status -eq 0 ] || failed=$((failed + 1))
  }
  local wanted=("$@")
  [ ${#wanted[@]} -gt 0 ] || [ "$gpus" -gt 1 ] || wanted=(links model mesh kill split)
  step links 10
  step nccl 150
  step model 60
  step mesh 240
  step comm 40
  step kill 60
  step split 60
  step train 110
  echo "gpu_ranks.sh: $failed steps failed in $((SECONDS - begin)) s; see $out"
  [ $failed -eq 0 ]
}

case "${1:-}" in
  pack) pack ;;
  run) [ $# -ge 2 ] || usage; shift; run "$@" ;;
  step)  # one of a run's, with its variables
    case "$2" in
      links | nccl | model | mesh | comm | split | train) "$2" ;;
      kill) kill_rank ;;
      *) usage ;;
    esac
    ;;
  *) usage ;;
esac

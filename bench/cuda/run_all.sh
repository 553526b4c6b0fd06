#!/bin/sh
# Checks and times all CUDA kernels: bench/cuda/run_all.sh BUILD_DIR OUT_DIR; one Hopper GPU.
# BUILD_DIR is what build.sh wrote; each program's rows go to OUT_DIR/NAME.txt. Fails if a check does.
# SPDX-License-Identifier: Apache-2.0
set -u
build=$1
out=$2
mkdir -p "$out"
status=0
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu \
  --format=csv >"$out/device.txt" 2>&1
cat "$out/device.txt"
for name in bf16_gemm fp8_gemm fp8_wgrad mla_decode decode_attention mla_attention; do
  timeout 200 "$build/${name}_bench" >"$out/$name.txt" 2>&1
  code=$?
  cat "$out/$name.txt"
  echo "$name: exit $code"
  [ $code -eq 0 ] || status=1
done
timeout 60 "$build/mla_decode_bench" --sweep >"$out/mla_decode_sweep.txt" 2>&1 || status=1
cat "$out/mla_decode_sweep.txt"
exit $status

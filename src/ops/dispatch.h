// How an op is declared once and sent to a backend: HADAL_OP and HADAL_DISPATCH.
//
//   HADAL_OP(rmsnorm_forward, Context& ctx, In x, In gain, float eps, Out y, Out rstd)
// declares ops::rmsnorm_forward (checks shapes, then dispatches; ops/norm.cc) and the body
// ops::cpu::rmsnorm_forward (ops/cpu/norm.cc) with the same signature.
// This is the one place that knows which backends are built.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/check.h"
#include "core/context.h"

#define HADAL_OP(name, ...) \
  void name(__VA_ARGS__);   \
  namespace cpu {           \
  void name(__VA_ARGS__);   \
  }

#define HADAL_DISPATCH(ctx, name, ...)                                         \
  do {                                                                         \
    if ((ctx).device.kind != ::hadal::DeviceKind::kCpu)                        \
      HADAL_FAIL(#name, ": this build has no CUDA backend; use --device cpu"); \
    cpu::name(ctx, __VA_ARGS__);                                               \
  } while (false)

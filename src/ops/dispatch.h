// How an op is declared once and sent to a backend: HADAL_OP and HADAL_DISPATCH.
//
//   HADAL_OP(rmsnorm_forward, Context& ctx, In x, In gain, float eps, Out y, Out rstd)
// declares ops::rmsnorm_forward (checks shapes, then dispatches; ops/norm.cc) and the bodies
// ops::cpu::rmsnorm_forward (ops/cpu/norm.cc) and, in a build with CUDA, ops::cuda::rmsnorm_forward
// (ops/cuda/norm.cu) with the same signature.
// This is the one place that knows which backends are built: HADAL_HAS_CUDA comes from CMake.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/check.h"
#include "core/context.h"

#ifdef HADAL_HAS_CUDA
#define HADAL_OP(name, ...) \
  void name(__VA_ARGS__);   \
  namespace cpu {           \
  void name(__VA_ARGS__);   \
  }                         \
  namespace cuda {          \
  void name(__VA_ARGS__);   \
  }

#define HADAL_DISPATCH(ctx, name, ...)                  \
  do {                                                  \
    if ((ctx).device.kind == ::hadal::DeviceKind::kCpu) \
      cpu::name(ctx, __VA_ARGS__);                      \
    else                                                \
      cuda::name(ctx, __VA_ARGS__);                     \
  } while (false)
#else
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
#endif

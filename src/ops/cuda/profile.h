// Time of each op on the GPU, for HADAL_PROFILE: an event after each launch, a table at exit.
//
// The time from one event to the next belongs to the launch between them; where the host is slower
// than the GPU that includes waiting for it. Not for recorded work (device::can_record).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

namespace hadal::ops::cuda {

// `op` lives as long as the program.
void profile_launch(const char* op, cudaStream_t stream);

}  // namespace hadal::ops::cuda

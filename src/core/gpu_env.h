// Environment variables of ranks on GPUs; see env.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace hadal::env {

std::string nccl();  // HADAL_NCCL: path of NCCL's library; "": libnccl.so.2 where the loader looks
// For this process and before NCCL is loaded, what NCCL must leave alone: NVLink's multicast
// (NCCL_NVLS_ENABLE), which is not needed, as sums are ours, and where it fails can take a host's
// GPUs out of service; and handing tensors of recorded calls to other processes
// (NCCL_GRAPH_REGISTER), as a Pool's memory is a range of many pieces that cannot be handed on.
void restrict_nccl();

}  // namespace hadal::env

// Environment variables of ranks on GPUs; see env.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace hadal::env {

std::string nccl();  // HADAL_NCCL: path of NCCL's library; "": libnccl.so.2 where the loader looks
// For this process and before NCCL is loaded: NCCL leaves NVLink's multicast alone. It is not
// needed (sums are ours), and where it fails it can take a host's GPUs out of service.
void forbid_multicast();

}  // namespace hadal::env

// Environment variables: one table, printed by `hadal env`. Debugging only, never model behaviour.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>

namespace hadal::env {

struct Variable {
  const char* name;
  const char* fallback;
  const char* meaning;
};

std::span<const Variable> table();

std::string isa();       // HADAL_ISA: "", "portable", "avx2" or "avx512"
std::string api_key();   // HADAL_API_KEY: let in by hadal serve
bool trace();            // HADAL_TRACE: errors also print their place in the source
bool cuda_plain();       // HADAL_CUDA_PLAIN: no kernels for one architecture alone
bool debug_sync();       // HADAL_DEBUG_SYNC: wait after every GPU kernel
bool fp8_short_sums();   // HADAL_FP8_SHORT_SUMS: sums of FP8 products in 14 bits
bool profile();          // HADAL_PROFILE: time of each op on the GPU, printed at exit
std::string sabotage();  // HADAL_SABOTAGE: a named fault for the tests of scripts/resume_check.sh

// This process among those that mpirun, srun or a script with HADAL_RANK started.
struct Place {
  int rank = 0, size = 1;
  std::string job;  // tells runs apart; the same for all processes of one
};
// None: it was started alone.
std::optional<Place> place();
std::string host();        // HADAL_HOST: name of this host for the ranks' sake; "": its own
std::string rendezvous();  // HADAL_RENDEZVOUS: file where ranks find each other; "": by the job

std::string nccl();  // HADAL_NCCL: path of NCCL's library; "": libnccl.so.2 where the loader looks
bool share_gpus();   // HADAL_SHARE_GPUS: several ranks on a GPU, for tests without NCCL itself
// For this process and before NCCL is loaded, what NCCL must leave alone: NVLink's multicast
// (NCCL_NVLS_ENABLE), which is not needed, as sums are ours, and where it fails can take a host's
// GPUs out of service; and handing tensors of recorded calls to other processes
// (NCCL_GRAPH_REGISTER), as a Pool's memory is a range of many pieces that cannot be handed on.
void restrict_nccl();

}  // namespace hadal::env

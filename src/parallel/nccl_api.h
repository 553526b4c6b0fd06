// NcclApi: the functions of NCCL that ranks on GPUs call, looked up in its library when the first
// one is needed: the program starts where there is no NCCL.
//
// Declared here and not by nccl.h, which the CUDA toolkit does not have: these functions are the
// same in all versions from 2.18 on.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>
#include <string>

namespace hadal {

struct NcclId {
  char bytes[128] = {};
};
struct ncclComm;  // NCCL's own name

// ncclConfig_t as of 2.18; later versions read what its `version` has.
struct NcclConfig {
  static constexpr int kDefault = std::numeric_limits<int>::min();
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef, version = 21800;
  int blocking = kDefault, cga_cluster_size = kDefault;
  int min_ctas = kDefault, max_ctas = kDefault;  // of a call's kernel
  const char* net_name = nullptr;
  int split_share = kDefault;
};

struct NcclApi {
  static constexpr int kUint8 = 1;  // ncclDataType_t; results are ncclResult_t, 0: success

  int (*get_version)(int* version) = nullptr;
  int (*get_unique_id)(NcclId* id) = nullptr;
  int (*init)(ncclComm** comm, int num_ranks, NcclId id, int rank) = nullptr;
  int (*init_with)(ncclComm** comm, int num_ranks, NcclId id, int rank,
                   const NcclConfig* config) = nullptr;
  int (*destroy)(ncclComm* comm) = nullptr;
  int (*abort)(ncclComm* comm) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*send)(const void* data, size_t count, int type, int peer, ncclComm* comm,
              void* stream) = nullptr;
  int (*recv)(void* data, size_t count, int type, int peer, ncclComm* comm, void* stream) = nullptr;
  const char* (*error_text)(int result) = nullptr;
  const char* (*last_error)(ncclComm* comm) = nullptr;
  std::string library;  // that they are from

  std::string version() const;  // "2.28.9"
  // Throws with NCCL's own words.
  void check(int result, const char* call) const;
};

// The library of HADAL_NCCL, or libnccl.so.2 where the loader looks. An Error that says what to
// install where there is none.
const NcclApi& nccl();

}  // namespace hadal

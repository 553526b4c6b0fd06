// NcclApi: dlopen, dlsym, and what to say when they fail.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/nccl_api.h"

#include <dlfcn.h>

#include "core/check.h"
#include "core/env.h"

namespace hadal {
namespace {

NcclApi load() {
  env::restrict_nccl();
  const std::string path = env::nccl();
  NcclApi api;
  api.library = path.empty() ? "libnccl.so.2" : path;
  // NOTE: never closed: NCCL has threads of its own.
  void* const library = dlopen(api.library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    HADAL_FAIL("ranks on GPUs need NCCL, and ", api.library, " could not be loaded (",
               why != nullptr ? why : "no reason given", "); ",
               path.empty() ? "install NCCL 2 for CUDA 13 (from PyPI: nvidia-nccl-cu13) and set "
                              "HADAL_NCCL to the path of its libnccl.so.2"
                            : "set HADAL_NCCL to the path of NCCL's libnccl.so.2");
  }
  const auto find = [&](auto& function, const char* name) {
    void* const found = dlsym(library, name);
    HADAL_CHECK(found != nullptr, api.library, " has no ", name,
                "; set HADAL_NCCL to the library of NCCL 2.18 or later");
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
  };
  find(api.get_version, "ncclGetVersion");
  find(api.get_unique_id, "ncclGetUniqueId");
  find(api.init, "ncclCommInitRank");
  find(api.init_with, "ncclCommInitRankConfig");
  find(api.destroy, "ncclCommDestroy");
  find(api.abort, "ncclCommAbort");
  find(api.group_start, "ncclGroupStart");
  find(api.group_end, "ncclGroupEnd");
  find(api.send, "ncclSend");
  find(api.recv, "ncclRecv");
  find(api.error_text, "ncclGetErrorString");
  find(api.last_error, "ncclGetLastError");
  return api;
}

}  // namespace

std::string NcclApi::version() const {
  int number = 0;
  check(get_version(&number), "ncclGetVersion");
  return concat(number / 10000, ".", number / 100 % 100, ".", number % 100);
}

void NcclApi::check(int result, const char* call) const {
  if (result == 0) return;
  const char* words = last_error(nullptr);
  HADAL_FAIL(call, " failed: ", error_text(result),
             words != nullptr && *words != '\0' ? concat(" (", words, ")") : "");
}

const NcclApi& nccl() {
  static const NcclApi api = load();
  return api;
}

}  // namespace hadal

// Memory of a GPU through the driver's virtual memory calls; see device_memory.h.
// SPDX-License-Identifier: Apache-2.0
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "core/check.h"
#include "core/device_memory.h"

namespace hadal::device {
namespace {

void check(cudaError_t status, const char* call) {
  HADAL_CHECK(status == cudaSuccess, call, " failed: ", cudaGetErrorString(status));
}
#define CHECK_CALL(call) check((call), #call)
void check(CUresult status, const char* call) {
  HADAL_CHECK(status == CUDA_SUCCESS, call, " failed with error ", static_cast<int>(status),
              " of the driver");
}

bool is_cpu(Device device) { return device.kind == DeviceKind::kCpu; }
void use(Device device) { CHECK_CALL(cudaSetDevice(device.index)); }

// Bytes of the device, and those that nobody uses.
struct Memory {
  size_t free = 0, total = 0;
};
Memory memory_of(Device device) {
  use(device);
  Memory memory;
  CHECK_CALL(cudaMemGetInfo(&memory.free, &memory.total));
  return memory;
}

// A call of the driver by its name, looked up when it becomes a pointer to one.
struct DriverCall {
  const char* name;
  template <class F>
  operator F*() const {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    CHECK_CALL(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result));
    HADAL_CHECK(result == cudaDriverEntryPointSuccess, "the driver has no ", name,
                "; install one for CUDA 12 or later");
    return reinterpret_cast<F*>(found);
  }
};

// The driver's calls, looked up: a program that links the driver starts only where one is
// installed.
struct Driver {
  decltype(&cuMemAddressReserve) reserve = DriverCall{"cuMemAddressReserve"};
  decltype(&cuMemAddressFree) free = DriverCall{"cuMemAddressFree"};
  decltype(&cuMemCreate) create = DriverCall{"cuMemCreate"};
  decltype(&cuMemRelease) release = DriverCall{"cuMemRelease"};
  decltype(&cuMemMap) map = DriverCall{"cuMemMap"};
  decltype(&cuMemUnmap) unmap = DriverCall{"cuMemUnmap"};
  decltype(&cuMemSetAccess) set_access = DriverCall{"cuMemSetAccess"};
  decltype(&cuMemGetAllocationGranularity) granularity =
      DriverCall{"cuMemGetAllocationGranularity"};
};
const Driver& driver() {
  static const Driver calls;
  return calls;
}

CUmemAllocationProp properties(Device device) {
  CUmemAllocationProp kind{};
  kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  kind.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device.index};
  return kind;
}

size_t whole_granules(Device device, size_t bytes) {
  const CUmemAllocationProp kind = properties(device);
  size_t granule = 0;
  check(driver().granularity(&granule, &kind, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        "cuMemGetAllocationGranularity");
  return (bytes + granule - 1) / granule * granule;
}

CUdeviceptr address(const Range& range) { return reinterpret_cast<CUdeviceptr>(range.data); }

}  // namespace

size_t memory_in_use(Device device) {
  if (is_cpu(device)) return 0;
  const Memory memory = memory_of(device);
  return memory.total - memory.free;
}

size_t memory_free(Device device) { return is_cpu(device) ? 0 : memory_of(device).free; }

Range reserve(Device device) {
  HADAL_CHECK(!is_cpu(device), "internal error: the CPU's memory is no range");
  Range range;
  range.bytes = whole_granules(device, memory_of(device).total);
  CUdeviceptr data = 0;
  check(driver().reserve(&data, range.bytes, 0, 0, 0), "cuMemAddressReserve");
  range.data = reinterpret_cast<void*>(data);
  return range;
}

void map(Device device, Range& range, size_t end) {
  if (end <= range.mapped) return;
  use(device);
  const size_t bytes = whole_granules(device, end - range.mapped);
  const CUmemAllocationProp kind = properties(device);
  CUmemGenericAllocationHandle memory = 0;
  const CUresult status = range.mapped + bytes > range.bytes
                              ? CUDA_ERROR_OUT_OF_MEMORY
                              : driver().create(&memory, bytes, &kind, 0);
  if (status == CUDA_ERROR_OUT_OF_MEMORY) {
    const Memory left = memory_of(device);
    HADAL_FAIL("out of GPU memory: could not get ", bytes >> 20, " MiB, ", left.free >> 20, " of ",
               left.total >> 20, " MiB are free; use a smaller batch or model");
  }
  check(status, "cuMemCreate");
  const CUdeviceptr at = address(range) + range.mapped;
  check(driver().map(at, bytes, 0, memory, 0), "cuMemMap");
  check(driver().release(memory), "cuMemRelease");  // the mapping keeps it
  const CUmemAccessDesc access{.location = kind.location,
                               .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  check(driver().set_access(at, bytes, &access, 1), "cuMemSetAccess");
  range.mapped += bytes;
}

void release(Device device, const Range& range) noexcept {
  static_cast<void>(cudaSetDevice(device.index));
  static_cast<void>(cudaDeviceSynchronize());
  if (range.mapped > 0) static_cast<void>(driver().unmap(address(range), range.mapped));
  static_cast<void>(driver().free(address(range), range.bytes));
}

}  // namespace hadal::device

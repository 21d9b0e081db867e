// A card's memory, and functions that do not need it. driver.cpp and runtime.cpp use this file and define the addresses.
// FAKE_CUDA_BYTES is the card's memory.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {
std::recursive_mutex lock;
std::uint64_t used_bytes = 0, next_handle = 1;
std::map<std::uint64_t, std::uint64_t> segments, pages;

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::uint64_t capacity_bytes() {
  static const std::uint64_t value = setting("FAKE_CUDA_BYTES", 84929347584ull);  // 79.1 GiB
  return value;
}

bool take(std::uint64_t nbytes) {
  if (used_bytes + nbytes > capacity_bytes()) return false;
  used_bytes += nbytes;
  return true;
}

void give_back(std::map<std::uint64_t, std::uint64_t>& held, std::uint64_t key) {
  auto found = held.find(key);
  if (found == held.end()) std::abort();
  used_bytes -= found->second;
  held.erase(found);
}

CUresult reserve(CUdeviceptr* address, size_t nbytes, size_t, CUdeviceptr, unsigned long long);

CUresult create(CUmemGenericAllocationHandle* handle, size_t nbytes, const CUmemAllocationProp*, unsigned long long) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (!take(nbytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = next_handle;
  pages[next_handle++] = nbytes;
  return CUDA_SUCCESS;
}

CUresult release(CUmemGenericAllocationHandle handle) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  give_back(pages, handle);
  return CUDA_SUCCESS;
}

CUresult granularity(size_t* nbytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *nbytes = 2 << 20;
  return CUDA_SUCCESS;
}

CUresult zero(int* value) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult succeed() { return CUDA_SUCCESS; }
CUresult refuse() { return CUDA_ERROR_NOT_SUPPORTED; }

const std::map<std::string, void*>& driver_functions() {
  static const std::map<std::string, void*> table = {
      {"cuMemAddressReserve", (void*)reserve}, {"cuMemCreate", (void*)create}, {"cuMemRelease", (void*)release},
      {"cuMemGetAllocationGranularity", (void*)granularity}, {"cuDeviceGetAttribute", (void*)zero},
      {"cuDeviceGet", (void*)zero}, {"cuMemMap", (void*)succeed}, {"cuMemUnmap", (void*)succeed},
      {"cuMemSetAccess", (void*)succeed}, {"cuMemAddressFree", (void*)succeed},
      {"cuTensorMapEncodeTiled", (void*)succeed}, {"cuCtxGetCurrent", (void*)succeed},
      {"cuDevicePrimaryCtxGetState", (void*)succeed}};
  return table;
}
}  // namespace

extern "C" {
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  auto found = driver_functions().find(name);
  *function = found == driver_functions().end() ? (void*)refuse : found->second;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *total_bytes = capacity_bytes();
  *free_bytes = *total_bytes - used_bytes;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "fake"; }
const char* cudaGetErrorName(cudaError_t) { return "fake"; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
}

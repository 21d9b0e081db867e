// CUDA's runtime, driver and management library as far as c10_cuda of torch 2.13 calls them: only memory.
// Addresses increase and are never used again. Functions that must never be called abort (`stubs.c`, which
// real_allocator.py makes).
#include "memory.h"

#include <cstring>

namespace {
std::uint64_t next_address = 0x300000000000;

CUresult reserve(CUdeviceptr* address, size_t nbytes, size_t, CUdeviceptr, unsigned long long) {
  *address = next_address;
  next_address += nbytes;
  return CUDA_SUCCESS;
}
}  // namespace

extern "C" {
cudaError_t cudaMalloc(void** address, size_t nbytes) {
  *address = nullptr;
  if (!take(nbytes)) return cudaErrorMemoryAllocation;
  *address = (void*)next_address;
  segments[next_address] = nbytes;
  next_address += nbytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (address) give_back(segments, (std::uint64_t)address);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  properties->totalGlobalMem = capacity_bytes();
  properties->major = 9;
  return cudaSuccess;
}
}

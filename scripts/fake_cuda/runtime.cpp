// CUDA's runtime and driver without a GPU, for all of PyTorch (cuda_without_gpu.py). Memory is host memory (pages of zeros,
// allocated when they are first used), and kernels do nothing. PyTorch allocates the same as on a card; values on the card
// have no meaning. FAKE_CUDA_BYTES is the card's memory. FAKE_CUDA_BYTE is the value that a program gets when it reads one
// byte back (for example whether a mask is all ones). FAKE_CUDA_LOG is a file for the names of launched kernels.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>

namespace {
std::uint64_t next_address = 0x200000000000;
std::map<std::uint64_t, std::uint64_t> ranges, pinned;
std::unordered_map<const void*, std::string> kernels;
std::FILE* log_file = nullptr;

void* map_memory(std::uint64_t nbytes) {
  std::uint64_t rounded = (nbytes + (2ull << 20) - 1) / (2ull << 20) * (2ull << 20);
  void* found = mmap((void*)next_address, rounded, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (found == MAP_FAILED) {
    std::perror("fake cuda: mmap");
    std::abort();
  }
  next_address += rounded;
  ranges[(std::uint64_t)found] = rounded;
  return found;
}

bool is_device(const void* address) {
  auto found = ranges.upper_bound((std::uint64_t)address);
  if (found == ranges.begin()) return false;
  --found;
  return (std::uint64_t)address < found->first + found->second;
}

CUresult reserve(CUdeviceptr* address, size_t nbytes, size_t, CUdeviceptr, unsigned long long) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *address = (CUdeviceptr)map_memory(nbytes);
  return CUDA_SUCCESS;
}
cudaError_t launched(const void* function, dim3 grid, dim3 block) {
  if (!log_file) return cudaSuccess;
  auto found = kernels.find(function);
  std::fprintf(log_file, "%s %u,%u,%u %u,%u,%u\n", found == kernels.end() ? "?" : found->second.c_str(), grid.x, grid.y,
               grid.z, block.x, block.y, block.z);
  return cudaSuccess;
}

struct Call { dim3 grid, block; size_t shared; cudaStream_t stream; };
thread_local Call pending;

void copy(void* to, const void* from, size_t nbytes) {
  bool reads_back = is_device(from) && !is_device(to);
  if (is_device(from) && is_device(to)) return;  // values on the card have no meaning
  if (reads_back && nbytes == 1) {
    *(char*)to = (char)setting("FAKE_CUDA_BYTE", 0);
    return;
  }
  std::memcpy(to, from, nbytes);
}
}  // namespace

extern "C" {
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  static bool logs = (log_file = std::getenv("FAKE_CUDA_LOG") ? std::fopen(std::getenv("FAKE_CUDA_LOG"), "w") : nullptr);
  if (logs) kernels[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
  pending = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pending.grid, *block = pending.block, *shared = pending.shared, *(cudaStream_t*)stream = pending.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) { *kernel = (cudaKernel_t)function; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void**, size_t, cudaStream_t) { return launched((const void*)k, g, b); }
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void**, size_t, cudaStream_t) { return launched(f, g, b); }
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void**, size_t, cudaStream_t) { return launched(f, g, b); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) { return launched(f, c->gridDim, c->blockDim); }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* data) { f(data); return cudaSuccess; }

cudaError_t cudaMalloc(void** address, size_t nbytes) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *address = nullptr;
  if (!take(nbytes)) return cudaErrorMemoryAllocation;
  *address = map_memory(nbytes);
  segments[(std::uint64_t)*address] = nbytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (!address) return cudaSuccess;
  if (!segments.count((std::uint64_t)address)) return cudaErrorInvalidValue;
  give_back(segments, (std::uint64_t)address);
  munmap(address, ranges[(std::uint64_t)address]);
  ranges.erase((std::uint64_t)address);
  return cudaSuccess;
}
cudaError_t cudaMallocManaged(void** address, size_t nbytes, unsigned) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *address = map_memory(nbytes);
  segments[(std::uint64_t)*address] = 0;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** address, size_t nbytes, unsigned) {
  *address = std::aligned_alloc(4096, (nbytes + 4095) / 4096 * 4096);
  std::lock_guard<std::recursive_mutex> guard(lock);
  pinned[(std::uint64_t)*address] = nbytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  pinned.erase((std::uint64_t)address);
  return std::free(address), cudaSuccess;
}
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) { std::lock_guard<std::recursive_mutex> g(lock); return copy(to, from, n), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) { std::lock_guard<std::recursive_mutex> g(lock); return copy(to, from, n), cudaSuccess; }
cudaError_t cudaMemcpy2DAsync(void* to, size_t tp, const void* from, size_t fp, size_t w, size_t h, cudaMemcpyKind, cudaStream_t) {
  std::lock_guard<std::recursive_mutex> g(lock);
  for (size_t i = 0; i < h; i++) copy((char*)to + i * tp, (const char*)from + i * fp, w);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
cudaError_t cudaMemset(void* to, int value, size_t n) { if (n <= 65536) std::memset(to, value, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t n, cudaStream_t) { return cudaMemset(to, value, n); }
cudaError_t cudaMemPrefetchAsync(const void*, size_t, cudaMemLocation, unsigned, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void** address, const void*) { static char block[1 << 20]; *address = block; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  std::lock_guard<std::recursive_mutex> g(lock);
  std::memset(a, 0, sizeof(*a));
  auto found = pinned.upper_bound((std::uint64_t)p);
  bool is_pinned = found != pinned.begin() && (--found, (std::uint64_t)p < found->first + found->second);
  a->type = is_device(p) ? cudaMemoryTypeDevice : is_pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->devicePointer = a->hostPointer = (void*)p;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::memset(p, 0, sizeof(*p));
  const char* name = std::getenv("FAKE_CUDA_NAME");
  std::strcpy(p->name, name ? name : "NVIDIA H100 80GB HBM3");
  p->totalGlobalMem = capacity_bytes();
  p->major = setting("FAKE_CUDA_MAJOR", 9), p->minor = setting("FAKE_CUDA_MINOR", 0);
  p->multiProcessorCount = setting("FAKE_CUDA_SMS", 132);
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->sharedMemPerBlock = 49152, p->regsPerBlock = 65536;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536, p->textureAlignment = 512, p->concurrentKernels = 1, p->unifiedAddressing = 1;
  p->l2CacheSize = 52428800, p->maxThreadsPerMultiProcessor = 2048, p->sharedMemPerMultiprocessor = 233472;
  p->regsPerMultiprocessor = 65536, p->managedMemory = 1, p->cooperativeLaunch = 1, p->sharedMemPerBlockOptin = setting("FAKE_CUDA_SHARED", 232448);
  p->maxBlocksPerMultiProcessor = 32, p->reservedSharedMemPerBlock = 1024, p->clusterLaunch = 1;
  p->memPitch = 2147483647, p->canMapHostMemory = 1, p->concurrentManagedAccess = 1, p->pageableMemoryAccess = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrManagedMemory: case cudaDevAttrConcurrentManagedAccess: case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrConcurrentKernels: case cudaDevAttrUnifiedAddressing: case cudaDevAttrClusterLaunch: *value = 1; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  std::memset(a, 0, sizeof(*a));
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int block, size_t shared) {
  *n = std::max(1, std::min({32, 2048 / std::max(block, 1), shared ? int(233472 / (shared + 1024)) : 32}));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int b, size_t s, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, b, s);
}

cudaError_t cudaStreamCreate(cudaStream_t* s) { return *s = (cudaStream_t)(next_handle++ << 8), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) { return *p = 0, cudaSuccess; }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* d, unsigned) { f(s, cudaSuccess, d); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = (cudaEvent_t)(next_handle++ << 8), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) { return *t = 1, cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* text, int n, int) { return std::snprintf(text, n, "0000:01:00.0"), cudaSuccess; }
}

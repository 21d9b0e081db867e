/* The functions of cuBLAS, cuBLASLt, cuDNN and the driver whose results PyTorch uses. Each handle is different. Every size
   is 0, so that the memory that these closed libraries allocate themselves is not in any figure. All other functions
   return success (cuda_without_gpu.py makes them). */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static long next_handle = 0x1000;
static int give(void** handle) { return *handle = (void*)(next_handle += 64), 0; }

#ifdef LIB_cublas
int cublasCreate_v2(void** handle) { return give(handle); }
int cublasGetVersion_v2(void* handle, int* version) { return *version = 130000, 0; }
int cublasGetPointerMode_v2(void* handle, int* mode) { return *mode = 0, 0; }
int cublasGetMathMode(void* handle, int* mode) { return *mode = 0, 0; }
#endif

#ifdef LIB_cublasLt
int cublasLtCreate(void** handle) { return give(handle); }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmulDescCreate(void** descriptor, int compute, int scale) { return give(descriptor); }
int cublasLtMatrixLayoutCreate(void** layout, int type, unsigned long rows, unsigned long columns, long leading) {
  return give(layout);
}
int cublasLtMatmulPreferenceCreate(void** preference) { return give(preference); }
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference,
                                   int wanted, void* results, int* found) {
  memset(results, 0, 96); /* cublasLtMatmulHeuristicResult_t: the first, of success and without a workspace */
  return *found = 1, 0;
}
#endif

#ifdef LIB_cudnn
int cudnnCreate(void** handle) { return give(handle); }
size_t cudnnGetVersion(void) { return 92000; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char* cudnnGetErrorString(int status) { return "fake"; }
void cudnnGetLastErrorString(char* message, size_t nbytes) { if (nbytes) *message = 0; }
int cudnnGetStream(void* handle, void** stream) { return *stream = NULL, 0; }
int cudnnBackendCreateDescriptor(int type, void** descriptor) { return *descriptor = calloc(1, 64), 0; }
enum { INT64 = 3, DESCRIPTOR = 15, INT32 = 23 }; /* cudnnBackendAttributeType_t */
int cudnnBackendGetAttribute(void* descriptor, int name, int type, long wanted, long* found, void* values) {
  if (found) *found = type == INT64 || type == DESCRIPTOR;
  if (type == INT64 && values && wanted > 0) *(long*)values = 0;
  if (type == INT32 && values && wanted > 0) *(int*)values = 0;
  return 0;
}
#endif

#ifdef LIB_cuda
int cuCtxGetCurrent(void** context) { return give(context); }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
#endif

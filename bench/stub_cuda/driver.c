// A libcuda.so.1 without a GPU, as far as Triton's launcher calls it: it loads any kernel, and a launch only counts.
#include <stddef.h>
#include <stdint.h>

static const uint64_t CONTEXT = 1;
enum { MAX_THREADS = 0, WARP_SIZE = 10, MULTIPROCESSORS = 16, MAX_SHARED_MEMORY_OPTIN = 97 };
static int64_t launches = 0;

int64_t stub_cuda_launches(void) { return launches; }

int cuLaunchKernelEx(const void* config, void* function, void** params, void** extra) {
  ++launches;
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = "stub_cuda";
  return 0;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case MAX_SHARED_MEMORY_OPTIN:
      *value = 232448;
      break;
    case MULTIPROCESSORS:
      *value = 132;
      break;
    case WARP_SIZE:
      *value = 32;
      break;
    default:
      *value = 65536;
  }
  return 0;
}

int cuDevicePrimaryCtxRetain(uint64_t* context, int device) {
  *context = CONTEXT;
  return 0;
}

int cuCtxGetCurrent(uint64_t* context) {
  *context = CONTEXT;
  return 0;
}

int cuCtxSetCurrent(uint64_t context) { return 0; }
int cuCtxGetLimit(size_t* value, int limit) {
  *value = 1 << 20;
  return 0;
}
int cuCtxSetLimit(int limit, size_t value) { return 0; }

int cuModuleLoadData(uint64_t* module, const void* image) {
  *module = 1;
  return 0;
}

int cuModuleGetFunction(uint64_t* function, uint64_t module, const char* name) {
  *function = 1;
  return 0;
}

int cuFuncGetAttribute(int* value, int attribute, uint64_t function) {
  *value = attribute == MAX_THREADS ? 1024 : 0;
  return 0;
}

int cuFuncSetAttribute(uint64_t function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(uint64_t function, int config) { return 0; }

// Every address is one of the device.
int cuPointerGetAttribute(uint64_t* value, int attribute, uint64_t address) {
  *value = address;
  return 0;
}

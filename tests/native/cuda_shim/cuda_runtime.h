// As much of CUDA's runtime as csrc/cuda uses, for running its kernels on the host: the threads of a cluster of blocks
// are fibers, switched at barriers and shuffles in an order that a test chooses. One cluster (by default of one block)
// runs at a time, on one host thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_shim {

// The order in which clusters, and the threads of a cluster, are given their turns. What depends on it is a race.
enum class Order { kForward, kReversed };
inline Order order = Order::kForward;

// What the current device answers when it is asked. `clusters`: how many it can run at once.
struct Device {
  int number, major, clusters;
};
inline Device device = {0, 8, 0};

inline int launches = 0;  // so far

// Runs `thread` once for every thread of the grid. Ends the process with a message on a barrier that some threads of
// its cluster or block (or lanes of its warp) never reach.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

// Shared memory of the running block, of which `key` names a part; filled with NaN before the block, and after it while
// others of its cluster run. Behind the dynamic part lies a page that traps.
void* shared(const void* key, size_t bytes);
void* dynamic_shared();

unsigned cluster_rank();
unsigned cluster_blocks();
void arrive_cluster();
void wait_cluster();
// What stands where `own` does, in the shared memory of another block of the cluster.
void* shared_of(const void* own, unsigned rank);

void sync_block();
void sync_warp(unsigned mask);
// What lane `source` of this warp passes in the same call.
unsigned exchange(unsigned mask, unsigned value, int source);

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) % sizeof(unsigned) == 0);
  unsigned words[sizeof(T) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof(T));
  for (unsigned& word : words) word = exchange(mask, word, source);
  std::memcpy(&value, words, sizeof(T));
  return value;
}

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

}  // namespace cuda_shim

// csrc/cuda/launch.cuh leaves these two to us. The memory is one for all threads, and another for another kernel.
#define GK_SHARED(type, name, count) \
  static const char name##_key = 0;  \
  type* const name = static_cast<type*>(cuda_shim::shared(&name##_key, sizeof(type) * (count)))
#define GK_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_shim::dynamic_shared())

using std::max;
using std::min;

inline void __syncthreads() {
  cuda_shim::sync_block();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_shim::sync_warp(mask);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = cuda_shim::lane();
  return cuda_shim::shuffle(mask, value, lane / width * width + source % width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = cuda_shim::lane(), source = lane + static_cast<int>(distance);
  return cuda_shim::shuffle(mask, value, source / width == lane / width ? source : lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = cuda_shim::lane(), source = lane ^ bits;
  return cuda_shim::shuffle(mask, value, source / width == lane / width ? source : lane);
}

// Fibers switch at barriers alone, so that plain code is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* number) {
  *number = cuda_shim::device.number;
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? cuda_shim::device.major : 227 << 10;
  return cudaSuccess;
}

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {16 << 10, 10 * cuda_shim::device.major};
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = cuda_shim::device.clusters;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return cuda_shim::run(*config, [=] { kernel(arguments...); });
}

// As much of CUDA's runtime as csrc/cuda uses, for running its kernels on the host: the threads of a block are fibers,
// switched at barriers and shuffles in an order that a test chooses. One block runs at a time, on one host thread.
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

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_shim {

// The order in which blocks, and the threads of a block, are given their turns. What depends on it is a race.
enum class Order { kForward, kReversed };
inline Order order = Order::kForward;

// Runs `thread` once for every thread of the grid. Ends the process with a message on a barrier that some threads of
// its block (or lanes of its warp) never reach.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

// Shared memory of the running block, of which `key` names a part; filled with NaN before each block.
void* shared(const void* key, size_t bytes);
void* dynamic_shared();

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

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return cuda_shim::run(*config, [=] { kernel(arguments...); });
}

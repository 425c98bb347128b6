// Launching kernels. Plain C++ with no <<<>>>, so that tests/native can compile the kernels for the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../common.h"

// Static shared memory of a block; the shim of tests/native has its own, poisoned before every block.
#ifndef GK_SHARED
#define GK_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace gankernels {

constexpr int kWarp = 32;
constexpr int kThreads = 256;    // most threads of a block
constexpr int kBlocksPerSM = 2;  // at least; left to itself, ptxas aims higher and spills

template <class I>
GK_HOST_DEVICE I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// Launches kernels one behind the other on a stream, until one fails. Asynchronous.
struct Launches {
  void* stream;
  cudaError_t error = cudaSuccess;

  // common_type_t leaves it to the kernel's parameters alone what its types are. No blocks, no launch.
  template <class... Parameters>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, std::common_type_t<Parameters>... args) {
    if (error != cudaSuccess || blocks == 0) return;
    if (blocks > INT32_MAX) {
      error = cudaErrorInvalidConfiguration;
      return;
    }
    launch(config(blocks, threads), kernel, args...);
  }

  cudaLaunchConfig_t config(int64_t blocks, dim3 threads) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = threads;
    config.stream = static_cast<cudaStream_t>(stream);
    return config;
  }

  template <class... Parameters>
  void launch(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...), std::common_type_t<Parameters>... args) {
    if (error != cudaSuccess) return;
    error = cudaLaunchKernelEx(&config, kernel, args...);
    const cudaError_t last = cudaGetLastError();  // asked in any case, since asking clears it
    if (error == cudaSuccess) error = last;
  }
};

}  // namespace gankernels

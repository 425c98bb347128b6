// Thread-block clusters (sm_90 and later): up to eight blocks that run together, meet at a barrier, and read each
// other's shared memory.
#pragma once

#include <cooperative_groups.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include "launch.cuh"

// Whether what is being compiled has clusters. Kernels that need them are empty where it has not.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GK_HAS_CLUSTERS 1
#else
#define GK_HAS_CLUSTERS 0
#endif

// Dynamic shared memory, aligned to 16; the shim of tests/native has its own.
#ifndef GK_DYNAMIC_SHARED
#define GK_DYNAMIC_SHARED(type, name)     \
  extern __shared__ int4 name##_memory[]; \
  type* const name = reinterpret_cast<type*>(name##_memory)
#endif

namespace gankernels {

constexpr int kMostClusterBlocks = 8;           // more is not portable
constexpr int64_t kMostSliceBytes = 200 << 10;  // of a block's dynamic shared memory: of 227 KiB, static memory too

// GANKERNELS_CUDA_CLUSTERS=0 turns them off. Read at every launch, so that a benchmark can compare in one process.
inline bool clusters_wanted() {
  const char* wanted = std::getenv("GANKERNELS_CUDA_CLUSTERS");
  return wanted == nullptr || std::strcmp(wanted, "0") != 0;
}

// Whether the current device can run at least one such cluster of this kernel. The driver is asked once for each shape.
inline bool clusters_fit(const void* kernel, const cudaLaunchConfig_t& config, unsigned size) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  const auto ask = [&] {
    int major = 0, most = 0, clusters = 0;
    cudaFuncAttributes attributes;
    // A kernel that the driver has compiled from PTX for a lesser architecture is empty.
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9 &&
           cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90 &&
           cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
           config.dynamicSmemBytes + attributes.sharedSizeBytes <= static_cast<size_t>(most) &&
           // The most, once for all shapes: this only allows it.
           cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                most - static_cast<int>(attributes.sharedSizeBytes)) == cudaSuccess &&
           cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0;
  };
  using Shape = std::tuple<const void*, int, unsigned, unsigned, size_t>;
  static std::mutex mutex;
  static std::map<Shape, bool> known;
  const Shape shape = {kernel, device, size, config.blockDim.x, config.dynamicSmemBytes};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(shape);
  if (found != known.end()) return found->second;
  const bool fits = ask();
  if (!fits) cudaGetLastError();  // a refusal is no error of ours
  return known[shape] = fits;
}

// Launches `clusters` clusters of `size` blocks, each with `shared` bytes of dynamic shared memory, or returns false
// where the device cannot.
template <class... Parameters>
bool launch_clusters(Launches& launches, void (*kernel)(Parameters...), int64_t clusters, unsigned size, dim3 threads,
                     size_t shared, std::common_type_t<Parameters>... args) {
  if (!clusters_wanted() || clusters * size > INT32_MAX) return false;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = launches.config(clusters * size, threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (!clusters_fit(reinterpret_cast<const void*>(kernel), config, size)) return false;
  launches.launch(config, kernel, args...);
  return true;
}

}  // namespace gankernels

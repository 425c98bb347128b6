// What the three orders of conditional batch normalisation share on the GPU.
#pragma once

#include <cmath>

#include "../conditional_batch_norm.h"
#include "tile.cuh"

namespace gankernels::conditional_batch_norm::cuda {

inline Tiling tile_pictures(const Problem& p, int width) {
  return gankernels::tile_pictures(p.n, p.c, p.l, p.layout, width);
}

// For statistics, samples are nothing: in channels_last the batch is one picture of N * L pixels.
inline Tiling tile_batch(const Problem& p, int width) {
  if (p.layout == Layout::kContiguous) return tile_pictures(p, width);
  return gankernels::tile_pictures(std::min<int64_t>(p.n, 1), p.c, p.n * p.l, p.layout, width);
}

// Planes are counted in 32 bits on the device.
inline bool supported(const Problem& p) {
  return p.n * p.c <= INT32_MAX;
}

template <class A>
GK_HOST_DEVICE A reciprocal_deviation(A var, A eps) {
  return 1 / std::sqrt(var + eps);
}

// z = (x - mean) * scale + bias for the channels of a thread. One expression for all orders, so that they agree on the
// sign of z.
template <class A, int kLanes>
struct Normalization {
  A mean[kLanes], scale[kLanes], bias[kLanes];

  template <class Args>
  __device__ Normalization(const Args& args, const Tile& tile) {
    const A eps = args.problem.eps;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      mean[k] = static_cast<const A*>(args.mean)[tile.c + k];
      const A rstd = reciprocal_deviation(static_cast<const A*>(args.var)[tile.c + k], eps);
      scale[k] = static_cast<const A*>(args.gain)[tile.plane + k] * rstd;
      bias[k] = static_cast<const A*>(args.bias)[tile.plane + k];
    }
  }

  __device__ A z(A deviation, int k) const { return std::fma(deviation, scale[k], bias[k]); }
};

// The threads of the kernels on [N, C]: 32 bytes of channels side by side, the rest across samples.
constexpr int kFinishX = 8;
inline dim3 finish_threads() {
  return dim3(kFinishX, kThreads / kFinishX);
}

// Adds up the splits of each sample. Bytes: partials [N, splits, C] in, sums [N, C] out.
template <class A, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    fold_kernel(const Sums<A, kCount>* partials, Sums<A, kCount>* sums, int64_t c, int splits) {
  const unsigned groups = ceil_div<int64_t>(c, kFinishX), n = blockIdx.x / groups;
  const int64_t channel = static_cast<int64_t>(blockIdx.x % groups) * kFinishX + threadIdx.x;
  Sums<A, kCount> sum[1] = {};
  if (channel < c) {
    for (int s = threadIdx.y; s < splits; s += blockDim.y) {
      sum[0] = merge(sum[0], partials[(static_cast<int64_t>(n) * splits + s) * c + channel]);
    }
  }
  reduce_rows(sum);
  if (threadIdx.y == 0 && channel < c) sums[n * c + channel] = sum[0];
}

template <class A, int kCount>
void fold(Launches& launches, const Tiling& tiling, const Sums<A, kCount>* partials, Sums<A, kCount>* sums) {
  if (tiling.splits == 1) return;  // the tiles' sums are the samples'
  launches(fold_kernel<A, kCount>, tiling.n * ceil_div<int64_t>(tiling.c, kFinishX), finish_threads(), partials, sums,
           tiling.c, tiling.splits);
}

// Sums over no pixels are zero.
inline int clear_planes(const Problem& p, std::initializer_list<void*> planes, void* stream) {
  const size_t bytes = p.n * p.c * (p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
  for (void* plane : planes) {
    if (bytes == 0) return cudaSuccess;
    if (int error = cudaMemsetAsync(plane, 0, bytes, static_cast<cudaStream_t>(stream))) return error;
  }
  return cudaSuccess;
}

}  // namespace gankernels::conditional_batch_norm::cuda

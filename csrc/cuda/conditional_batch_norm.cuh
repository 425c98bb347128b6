// What the three orders of conditional batch normalisation share on the GPU.
#pragma once

#include <cmath>

#include "../conditional_batch_norm.h"
#include "tile.cuh"

namespace gankernels::conditional_batch_norm::cuda {

inline Tiling tile_pictures(const Problem& p, int width) {
  return gankernels::tile_pictures(p.n, p.c, p.l, p.layout, width);
}

// For statistics of the batch, samples are nothing: in channels_last it is one picture of N * L pixels.
inline Tiling tile_batch(const Problem& p, int width) {
  if (p.layout == Layout::kContiguous || p.per_sample) return tile_pictures(p, width);
  return gankernels::tile_pictures(std::min<int64_t>(p.n, 1), p.c, p.n * p.l, p.layout, width);
}

// To the steps on [N, C], which know no pixels, samples with statistics of their own are one with N * C channels.
template <class Args>
Args as_one_sample(Args args) {
  Problem& p = args.problem;
  if (p.per_sample) p.c *= p.n, p.n = 1, p.per_sample = false;
  return args;
}

// Planes are counted in 32 bits on the device.
inline bool supported(const Problem& p) {
  return p.n * p.c <= INT32_MAX && p.rows() * p.c <= INT32_MAX;
}

// ---- Rows of gain and bias ----

// A sample's row, or -1 where its label is out of range.
__device__ __forceinline__ int64_t known_row(const Problem& p, int64_t sample) {
  const int64_t row = p.row_of(sample);
  return row >= 0 && row < p.rows() ? row : -1;
}

// The samples in the order of their labels: each counts those before it. Bytes: labels [N] in for every thread, from
// the cache; order [N] out.
template <class Place>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) order_kernel(Problem p, Place* order) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample >= p.n) return;
  const int64_t label = p.labels[sample];
  Place place = 0;
  for (int64_t i = 0; i < p.n; ++i) place += p.labels[i] < label || (p.labels[i] == label && i < sample);
  order[place] = sample;
}

inline int64_t order_bytes(const Problem& p) {
  return p.labels ? ceil_div<int64_t>(p.n, 2) * 16 : 0;
}

// Puts the order that args needs at the beginning of a workspace, and returns the rest of that.
template <class Args>
void* begin_with_order(Launches& launches, Args& args, void* workspace) {
  Problem& p = args.problem;
  if (!p.labels) return workspace;
  auto* order = static_cast<int64_t*>(workspace);
  p.order = order;
  launches(order_kernel<int64_t>, ceil_div<int64_t>(p.n, kThreads), dim3(kThreads), p, order);
  return static_cast<char*>(workspace) + order_bytes(p);
}

// Calls use(row, sums) for the rows that the batch has, which the threads of a column share, and the sums over a row's
// samples.
template <class A, int kCount, class Use>
__device__ __forceinline__ void for_each_row(const Problem& p, const Sums<A, kCount>* sums, int64_t c, Use use) {
  for (int64_t i = threadIdx.y; i < p.n; i += blockDim.y) {
    if (!p.begins_row(i)) continue;
    const int64_t row = known_row(p, p.sample_at(i));
    if (row < 0) continue;
    Sums<A, kCount> sum = sums[p.sample_at(i) * p.c + c];
    for (int64_t j = i + 1; j < p.n && !p.begins_row(j); ++j) sum = merge(sum, sums[p.sample_at(j) * p.c + c]);
    use(row, sum);
  }
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
    const int64_t statistic = args.problem.statistic(tile.n, tile.c);
    A rstd[kLanes];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      mean[k] = static_cast<const A*>(args.mean)[statistic + k];
      rstd[k] = reciprocal_deviation(static_cast<const A*>(args.var)[statistic + k], eps);
    }
    set_row(args, rstd, tile.n, tile.c);
  }

  // With the statistics at hand.
  template <class Args>
  __device__ Normalization(const Args& args, const A (&means)[kLanes], const A (&rstd)[kLanes], int64_t n, int64_t c) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) mean[k] = means[k];
    set_row(args, rstd, n, c);
  }

  __device__ A z(A deviation, int k) const { return std::fma(deviation, scale[k], bias[k]); }

 private:
  template <class Args>
  __device__ void set_row(const Args& args, const A (&rstd)[kLanes], int64_t n, int64_t c) {
    const Problem& p = args.problem;
    const int64_t row = known_row(p, n);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      scale[k] = row < 0 ? static_cast<A>(NAN) : static_cast<const A*>(args.gain)[row * p.c + c + k] * rstd[k];
      bias[k] = row < 0 ? static_cast<A>(NAN) : static_cast<const A*>(args.bias)[row * p.c + c + k];
    }
  }
};

// The channel's first value, in the sample whose statistics they are. Means are kept as distances from it: where |mean|
// >> std they have the size of std, and so have their rounding errors when they are merged.
template <class T>
__device__ __forceinline__ Accumulator<T> origin(const Forward& args, int64_t n, int64_t c) {
  const Problem& p = args.problem;
  const int64_t stride = p.layout == Layout::kChannelsLast ? 1 : p.l, sample = p.per_sample ? n * p.c * p.l : 0;
  return static_cast<Accumulator<T>>(static_cast<const T*>(args.x)[sample + c * stride]);
}

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
inline int clear_rows(const Problem& p, std::initializer_list<void*> tables, void* stream) {
  const size_t bytes = p.rows() * p.c * (p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
  for (void* table : tables) {
    if (bytes == 0) return cudaSuccess;
    if (int error = cudaMemsetAsync(table, 0, bytes, static_cast<cudaStream_t>(stream))) return error;
  }
  return cudaSuccess;
}

// Bytes: sums [N, C] in, of the rows that the batch has out.
template <class A, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    row_sums_kernel(Problem p, const Sums<A, kCount>* sums, Sums<A, kCount>* of_rows) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishX + threadIdx.x;
  if (c >= p.c) return;
  for_each_row(p, sums, c, [&](int64_t row, const Sums<A, kCount>& sum) { of_rows[row * p.c + c] = sum; });
}

// Leaves in `sums` [rows, C] what launch(of_samples, partials) makes of the samples.
template <class A, int kCount, class Launch>
void sums_of_rows(Launches& launches, const Problem& p, void* sums, void* workspace, Launch launch) {
  using Item = Sums<A, kCount>;
  if (!p.labels) return launch(static_cast<Item*>(sums), static_cast<Item*>(workspace));
  auto* of_samples = static_cast<Item*>(workspace);  // [N, C]
  launch(of_samples, of_samples + p.n * p.c);
  launches(row_sums_kernel<A, kCount>, ceil_div<int64_t>(p.c, kFinishX), finish_threads(), p, of_samples,
           static_cast<Item*>(sums));
}

}  // namespace gankernels::conditional_batch_norm::cuda

// What the power iteration spends its time on, on the GPU: `across` from W and `along`, and the other way round. Which
// is which stands in spectral_norm.h.
#pragma once

#include "spectral_norm.cuh"

namespace gankernels::spectral_norm::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kLongRun = 2048;    // numbers from which a run gets a block, not a warp
constexpr int64_t kRunsOfSplit = 64;  // what a block sums along: its partial result is as long as a run

// across = W along
template <class A>
struct Across {
  Matrix m;
  const void* w;
  const A* along;
  A* out;
  bool vectors;
  int64_t blocks() const {
    if (m.inner > 1) return ceil_div<int64_t>(m.across(), kThreads);
    return m.columns >= kLongRun ? m.rows : ceil_div<int64_t>(m.rows, kWarps);
  }
};

// along = W^T across, in splits of the runs; Fold adds them up.
template <class A>
struct Along {
  Matrix m;
  const void* w;
  const A* across;
  A* partial;  // [splits, columns]
  int width;   // numbers of a thread: a vector, or one
  GK_HOST_DEVICE int64_t chunks() const { return ceil_div<int64_t>(m.columns, int64_t(kThreads) * width); }
  int64_t splits() const { return ceil_div(m.rows, kRunsOfSplit); }
  int64_t blocks() const { return chunks() * splits(); }
};

template <class A>
struct Fold {
  const A* partial;  // [splits, inner * size], neighbours of `inner` being one
  A* out;
  int64_t size, splits, inner;
  int64_t blocks() const { return ceil_div<int64_t>(size, kThreads); }
};

template <class T, int kWidth, class A>
__device__ A dot_run(const Across<A>& args, int64_t run, int first, int step) {
  const Matrix& m = args.m;
  const T* w = static_cast<const T*>(args.w) + run * m.columns;
  A sums[4] = {};
  for (int64_t c = int64_t(first) * kWidth; c < m.columns; c += int64_t(step) * kWidth * 4) {
    Vector<T, kWidth> batch[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = c + int64_t(k) * step * kWidth;
      if (at < m.columns) batch[k] = load<kWidth>(w + at);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = c + int64_t(k) * step * kWidth;
      if (at >= m.columns) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        sums[k] += static_cast<A>(batch[k].at[i]) * args.along[RankOne<A>::index(m, at + i)];
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Bytes: the weights in; [rows * inner] out.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) across_kernel(Table<Across<A>> table) {
  constexpr int kWidth = kVectorWidth<T>;
  unsigned block;
  const Across<A>& args = table.mine(block);
  const Matrix& m = args.m;
  if (m.inner > 1) {  // a thread for each element: neighbours read neighbouring numbers
    const int64_t q = int64_t(block) * kThreads + threadIdx.x;
    if (q >= m.across()) return;
    const T* w = static_cast<const T*>(args.w) + q / m.inner * m.columns + q % m.inner;
    A sum = 0;
    for (int64_t i = 0; i * m.inner < m.columns; ++i) sum += static_cast<A>(w[i * m.inner]) * args.along[i];
    args.out[q] = sum;
    return;
  }
  const bool whole = m.columns >= kLongRun;
  const int64_t run = whole ? int64_t(block) : int64_t(block) * kWarps + threadIdx.x / kWarp;
  const int first = whole ? threadIdx.x : threadIdx.x % kWarp, step = whole ? kThreads : kWarp;
  Sums<A, 1> sum = {};
  if (run < m.rows)
    sum.at[0] = args.vectors ? dot_run<T, kWidth>(args, run, first, step) : dot_run<T, 1>(args, run, first, step);
  sum = whole ? reduce_block(sum) : reduce_lanes(sum, kWarp);
  if (first == 0 && run < m.rows) args.out[run] = sum.at[0];
}

template <class T, int kWidth, class A>
__device__ void sum_along(const Along<A>& args, unsigned block) {
  const Matrix& m = args.m;
  const int64_t chunks = args.chunks(), split = block / chunks;
  const int64_t c = (int64_t(block % chunks) * kThreads + threadIdx.x) * kWidth;
  if (c >= m.columns) return;
  const int64_t begin = split * kRunsOfSplit, end = min(begin + kRunsOfSplit, m.rows);
  const T* w = static_cast<const T*>(args.w) + c;
  int residue[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) residue[i] = m.inner == 1 ? 0 : static_cast<int>((c + i) % m.inner);
  A sums[kWidth] = {};
  for (int64_t r = begin; r < end; r += 4) {
    Vector<T, kWidth> batch[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (r + k < end) batch[k] = load<kWidth>(w + (r + k) * m.columns);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (r + k >= end) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        sums[i] += static_cast<A>(batch[k].at[i]) * args.across[(r + k) * m.inner + residue[i]];
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) args.partial[split * m.columns + c + i] = sums[i];
}

// Bytes: the weights in; [splits, columns] out.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) along_kernel(Table<Along<A>> table) {
  unsigned block;
  const Along<A>& args = table.mine(block);
  args.width > 1 ? sum_along<T, kVectorWidth<T>>(args, block) : sum_along<T, 1>(args, block);
}

// Bytes: [splits, columns] in; [size] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) fold_kernel(Table<Fold<A>> table) {
  unsigned block;
  const Fold<A>& args = table.mine(block);
  const int64_t i = int64_t(block) * kThreads + threadIdx.x;
  if (i >= args.size) return;
  A sum = 0;
  for (int64_t k = 0; k < args.splits; ++k)
    for (int64_t b = 0; b < args.inner; ++b) sum += args.partial[(k * args.size + i) * args.inner + b];
  args.out[i] = sum;
}

}  // namespace gankernels::spectral_norm::cuda

// What the CUDA kernels of spectral normalisation share: many weights in one launch.
#pragma once

#include <vector>

#include "../spectral_norm.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace gankernels::spectral_norm::cuda {

constexpr int64_t kParameterBytes = 4000;  // of 4096, which every CUDA takes

// Some weights' arguments, as a kernel's parameter: no table in memory that a copy would have to bring there, and that
// would have to outlive a CUDA graph. `first` says which blocks are whose.
template <class Args>
struct Table {
  static constexpr int kMost = (kParameterBytes - 8) / (sizeof(Args) + sizeof(unsigned)) - 1;
  int count;
  unsigned first[kMost + 1];
  Args at[kMost];

  // This block's weight, and which of the weight's blocks it is.
  __device__ const Args& mine(unsigned& block) const {
    int i = 0;
    while (i + 1 < count && blockIdx.x >= first[i + 1]) ++i;
    block = blockIdx.x - first[i];
    return at[i];
  }
};

// Launches the kernel for all weights, as many at a time as a table holds. Args::blocks() says how many blocks.
template <class Args>
void launch_all(Launches& launches, void (*kernel)(Table<Args>), const std::vector<Args>& all) {
  for (size_t begin = 0; begin < all.size();) {
    Table<Args> table = {};
    unsigned blocks = 0;
    while (begin < all.size() && table.count < Table<Args>::kMost) {
      table.first[table.count] = blocks;
      table.at[table.count] = all[begin++];
      blocks += static_cast<unsigned>(table.at[table.count++].blocks());
    }
    launches(kernel, blocks, dim3(kThreads), table);
  }
}

// Memory handed out from a workspace, 16-byte aligned. Without one it counts the bytes.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class A>
  A* take(int64_t count) {
    const int64_t at = used_;
    used_ += ceil_div<int64_t>(count * sizeof(A), 16) * 16;
    return memory_ ? reinterpret_cast<A*>(memory_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Blocks that share the numbers of one weight, each `span` of them; a constant span, so that sums do not depend on the
// GPU.
constexpr int64_t kSpan = 32 * kThreads;
GK_HOST_DEVICE int64_t spans(const Matrix& m) {
  return ceil_div(m.size(), kSpan);
}

// Calls body(n) for the vectors of a block's span.
template <int kWidth, class Body>
__device__ void each_vector(const Matrix& m, unsigned block, Body body) {
  const int64_t end = min((int64_t(block) + 1) * kSpan, m.size());
  for (int64_t n = int64_t(block) * kSpan + threadIdx.x * kWidth; n < end; n += kThreads * kWidth) body(n);
}

// u v^T of the number n. Vectors are in torch's order.
template <class A>
struct RankOne {
  const A *along, *across;

  __device__ A at(const Matrix& m, int64_t n) const {
    // 32 bits where they do: a division of 64 takes several times as long.
    const int64_t r =
        m.size() <= UINT32_MAX ? static_cast<uint32_t>(n) / static_cast<uint32_t>(m.columns) : n / m.columns;
    const int64_t c = n - r * m.columns;
    return of_run(m, r, c);
  }
  __device__ A of_run(const Matrix& m, int64_t r, int64_t c) const {
    const int inner = static_cast<int>(m.inner);
    const int64_t q = inner == 1 ? r : r * inner + static_cast<uint32_t>(c) % inner;
    return along[index(m, c)] * across[q];
  }
  __device__ static int64_t index(const Matrix& m, int64_t c) {
    return m.inner == 1 && m.positions == 1 ? c : m.of_along(c);
  }
};

// Calls f with the element types of weights and results as values; f returns a cudaError_t.
template <class F>
int with_types(const Options& options, F f) {
  if (options.weight == DType::kFloat32 && options.output == DType::kBFloat16) return f(float(), __nv_bfloat16());
  if (options.weight == DType::kFloat32 && options.output == DType::kFloat16) return f(float(), __half());
  if (options.weight != options.output) return cudaErrorInvalidValue;
  switch (options.weight) {
    case DType::kFloat32:
      return f(float(), float());
    case DType::kFloat64:
      return f(double(), double());
    case DType::kBFloat16:
      return f(__nv_bfloat16(), __nv_bfloat16());
    case DType::kFloat16:
      return f(__half(), __half());
  }
  return cudaErrorInvalidValue;
}

// Whether a weight and its fellows can be walked in vectors of `kWidth` numbers, none of which spans two runs.
template <int kWidth>
bool in_vectors(const Matrix& m, std::initializer_list<const void*> arrays) {
  return kWidth > 1 && vectorisable(arrays, m.columns, kWidth);
}

}  // namespace gankernels::spectral_norm::cuda

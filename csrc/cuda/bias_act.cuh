// What the three orders of bias_act share on the GPU.
#pragma once

#include "../bias_act.h"
#include "tile.cuh"

namespace gankernels::bias_act::cuda {

// Vectors of each operand that a thread has under way. Beside the constants of a smooth activation, or the sums of
// eight channels, more would not stay in registers.
template <Activation kAct>
constexpr int kBatch = is_piecewise_linear(kAct) ? 4 : 2;
template <Activation kAct, int kLanes>
constexpr int kBackwardBatch = kLanes < 8 ? kBatch<kAct> : kBatch<kAct> / 2;

inline Layout layout_of(const Problem& p) {
  return p.inner == 1 && p.channels > 1 ? Layout::kChannelsLast : Layout::kContiguous;
}

// As pictures: channels that are innermost are those of one picture of `outer` pixels.
inline Tiling tile(const Problem& p, int width) {
  if (layout_of(p) == Layout::kChannelsLast) {
    return tile_pictures(1, p.channels, p.outer, Layout::kChannelsLast, width);
  }
  return tile_pictures(p.outer, p.channels, p.inner, Layout::kContiguous, width);
}

// Planes are counted in 32 bits on the device.
inline bool supported(const Problem& p) {
  return (layout_of(p) == Layout::kChannelsLast ? p.channels : p.outer * p.channels) <= INT32_MAX;
}

// A channel's value for each of a thread's channels; null stands for zeros.
template <class A, int kLanes>
struct PerChannel {
  A at[kLanes];

  __device__ PerChannel(const void* values, const Tile& tile) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) at[k] = values ? static_cast<const A*>(values)[tile.c + k] : A(0);
  }
};

// The sums that a tile leaves behind, [slices, channels].
template <class Access, class A>
__device__ __forceinline__ void store_sums(Sums<A, 1> (&sums)[Access::kLanes], Sums<A, 1>* partials,
                                           const Tiling& tiling, const Tile& tile) {
  Access::reduce(sums);
  if (!tile.leader) return;
#pragma unroll
  for (int k = 0; k < Access::kLanes; ++k) partials[tile.slice * tiling.c + tile.c + k] = sums[k];
}

// The threads of the kernel on [channels]: 32 bytes of channels side by side, the rest across slices.
constexpr int kFinishX = 8;

// dbias[c] = sum over slices. Bytes: [slices, channels] in, [channels] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    bias_act_dbias_kernel(const Sums<A, 1>* partials, A* dbias, int64_t channels, int64_t slices) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishX + threadIdx.x;
  Sums<A, 1> sum[1] = {};
  if (c < channels) {
    for (int64_t s = threadIdx.y; s < slices; s += blockDim.y) sum[0] = merge(sum[0], partials[s * channels + c]);
  }
  reduce_rows(sum);
  if (threadIdx.y == 0 && c < channels) dbias[c] = sum[0].at[0];
}

template <class A>
void finish(Launches& launches, const Tiling& tiling, const Sums<A, 1>* partials, void* dbias) {
  launches(bias_act_dbias_kernel<A>, ceil_div<int64_t>(tiling.c, kFinishX), dim3(kFinishX, kThreads / kFinishX),
           partials, static_cast<A*>(dbias), tiling.c, tiling.slices());
}

// Calls f with the Access and the activation that suit; f returns a cudaError_t.
template <class F>
int with_kernel(const Problem& p, std::initializer_list<const void*> arrays, F f) {
  if (!supported(p)) return cudaErrorInvalidValue;
  const Layout layout = layout_of(p);
  const int64_t pixels = layout == Layout::kChannelsLast ? p.outer : p.inner;
  return with_access(p.dtype, layout, p.channels, pixels, arrays, [&](auto access) {
    return with_activation<Activation::kGelu>(p.activation, [&](auto act) { return f(access, act); });
  });
}

}  // namespace gankernels::bias_act::cuda

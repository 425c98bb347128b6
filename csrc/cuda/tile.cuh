// How a grid walks pictures [N, C, L] (contiguous) or [N, L, C] (channels_last): every thread gets vectors at a
// constant stride, all of one channel (contiguous) or of kWidth neighbouring channels (channels_last). What has to be
// known of the layout stands here; kernels say what happens to a vector.
#pragma once

#include <algorithm>
#include <type_traits>

#include "reduce.cuh"
#include "vector.cuh"

namespace gankernels {

struct Tiling {
  int64_t n, c, l;
  int x, y;      // threads of a block: along memory, across it
  int chunks;    // blocks that share the channels of a pixel, in channels_last
  int splits;    // blocks that share the pixels of a sample
  int64_t span;  // pixels of one of them
  int64_t blocks;

  dim3 threads() const { return dim3(x, y); }
  int64_t slices() const { return n * splits; }  // partial results of a channel
};

inline Tiling tile_pictures(int64_t n, int64_t c, int64_t l, Layout layout, int width) {
  constexpr int64_t kBlocks = 1024;  // 132 SMs with 8 blocks each; a constant, so that results do not depend on the GPU
  constexpr int64_t kSteps = 8;      // a block walks at least so many, to be worth its partial results
  Tiling t = {n, c, l, 1, 1, 1, 1, l, 0};
  int64_t step;  // pixels that a block passes at once
  if (layout == Layout::kChannelsLast) {
    const int64_t vectors = c / width;
    t.chunks = static_cast<int>(std::max<int64_t>(1, ceil_div<int64_t>(vectors, kThreads)));
    t.x = static_cast<int>(std::max<int64_t>(1, ceil_div<int64_t>(vectors, t.chunks)));
    t.y = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(kThreads / t.x, l)));
    t.blocks = n * t.chunks;
    step = t.y;
  } else {
    // A plane gets a power of two of lanes: eight first (128 bytes side by side), more while each has over four vectors
    // to walk, then a block; small planes share a block.
    const int64_t vectors = l / width;
    while (t.x < kWarp && t.x < vectors && (t.x < 8 || t.x * 4 < vectors)) t.x *= 2;
    if (vectors > 8 * kWarp) t.x = kThreads;
    t.y = kThreads / t.x;
    t.blocks = ceil_div<int64_t>(n * c, t.y);
    step = t.x * width;
  }
  const int64_t steps = ceil_div(l, step);
  const int64_t wanted = ceil_div<int64_t>(kBlocks, std::max<int64_t>(1, t.blocks));
  t.span = ceil_div(steps, std::max<int64_t>(1, std::min(wanted, steps / kSteps))) * step;
  t.splits = static_cast<int>(t.span == 0 ? 1 : ceil_div(l, t.span));
  t.blocks *= t.splits;
  return t;
}

// A thread's share.
struct Tile {
  int64_t offset, stride, count;  // of its vectors, in elements
  int64_t slice;                  // which partial result of its channels: n * splits + split
  int64_t n, c;                   // its sample; its channel, or the first of them
  bool leader;                    // it holds what reduce() returns, and there are such channels
};

template <class T, Layout kLayout_, int kWidth_>
struct Access {
  using Element = T;
  static constexpr Layout kLayout = kLayout_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kLanes = kLayout == Layout::kChannelsLast ? kWidth : 1;  // channels of a vector

  __device__ static Tile tile(const Tiling& t, unsigned block) {
    Tile tile;
    int64_t first, step;
    unsigned split;
    bool exists;
    if (kLayout == Layout::kChannelsLast) {
      const unsigned slice = block / t.chunks, n = slice / t.splits;
      split = slice % t.splits;
      tile.slice = slice;
      tile.c = (static_cast<int64_t>(block % t.chunks) * t.x + threadIdx.x) * kWidth;
      tile.n = n;
      exists = tile.c < t.c;
      tile.leader = exists && threadIdx.y == 0;
      first = split * t.span + threadIdx.y;
      step = t.y;
      tile.offset = (n * t.l + first) * t.c + tile.c;
      tile.stride = step * t.c;
    } else {
      const unsigned plane = block / t.splits * t.y + threadIdx.y, n = plane / static_cast<unsigned>(t.c);
      split = block % t.splits;
      tile.slice = static_cast<int64_t>(n) * t.splits + split;
      tile.c = plane - n * t.c;
      tile.n = n;
      exists = plane < t.n * t.c;
      tile.leader = exists && threadIdx.x == 0;
      first = split * t.span + threadIdx.x * kWidth;
      step = t.x * kWidth;
      tile.offset = static_cast<int64_t>(plane) * t.l + first;
      tile.stride = step;
    }
    const int64_t last = min((split + 1) * t.span, t.l);
    tile.count = exists && first < last ? ceil_div(last - first, step) : 0;
    return tile;
  }

  // Merges what the threads of a channel hold, into its leader.
  template <class Item>
  __device__ static void reduce(Item (&items)[kLanes]) {
    if constexpr (kLayout == Layout::kChannelsLast) {
      reduce_rows(items);
    } else {
      items[0] = blockDim.x > kWarp ? reduce_block(items[0]) : reduce_lanes(items[0], blockDim.x);
    }
  }
};

// Applies use(offset, load(offset)) to the vectors of a tile, kBatch of them in flight at a time.
template <int kBatch, class Load, class Use>
__device__ __forceinline__ void stream(const Tile& tile, Load load, Use use) {
  int64_t offset = tile.offset;
  for (int64_t left = tile.count; left > 0; left -= kBatch, offset += kBatch * tile.stride) {
    decltype(load(offset)) batch[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (k < left) batch[k] = load(offset + k * tile.stride);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (k < left) use(offset + k * tile.stride, batch[k]);
    }
  }
}

// Calls f with the Access that suits; f returns a cudaError_t. kMostLanes bounds the channels of a thread, for kernels
// that keep much for each.
template <int kMostLanes = 8, class F>
int with_access(DType dtype, Layout layout, int64_t c, int64_t l, std::initializer_list<const void*> arrays, F f) {
  const auto with_layout = [&](auto element) {
    using T = decltype(element);
    constexpr int kWidth = kVectorWidth<T>;
    if (layout == Layout::kChannelsLast) {
      constexpr int kLanes = std::min(kWidth, kMostLanes);
      if (vectorisable(arrays, c, kLanes)) return f(Access<T, Layout::kChannelsLast, kLanes>());
      return f(Access<T, Layout::kChannelsLast, 1>());
    }
    if (vectorisable(arrays, l, kWidth)) return f(Access<T, Layout::kContiguous, kWidth>());
    return f(Access<T, Layout::kContiguous, 1>());
  };
  switch (dtype) {
    case DType::kFloat32:
      return with_layout(float());
    case DType::kFloat64:
      return with_layout(double());
    case DType::kBFloat16:
      return with_layout(__nv_bfloat16());
    case DType::kFloat16:
      return with_layout(__half());
  }
  return cudaErrorInvalidValue;
}

// Calls f with the activation as a constant; f returns a cudaError_t.
template <Activation kLast, class F>
int with_activation(Activation activation, F f) {
  if (activation == kLast) return f(std::integral_constant<Activation, kLast>());
  if constexpr (kLast == Activation::kNone) {
    return cudaErrorInvalidValue;
  } else {
    return with_activation<static_cast<Activation>(static_cast<int>(kLast) - 1)>(activation, f);
  }
}

// With one of the piecewise linear ones.
template <class F>
int with_activation(Activation activation, F f) {
  return with_activation<Activation::kLeakyRelu>(activation, f);
}

}  // namespace gankernels

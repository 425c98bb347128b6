// Reductions in a fixed order, hence to the same bits every time. An item is a struct of floats or doubles with a
// merge(Item, Item) beside it; all threads of the block must call.
#pragma once

#include <cstring>

#include "launch.cuh"

namespace gankernels {

template <class A, int kCount>
struct Sums {
  A at[kCount];
};

template <class A, int kCount>
__device__ __forceinline__ Sums<A, kCount> merge(Sums<A, kCount> a, const Sums<A, kCount>& b) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) a.at[k] += b.at[k];
  return a;
}

template <class Item>
__device__ __forceinline__ Item shuffle_down(const Item& item, int distance, int width) {
  unsigned words[sizeof(Item) / sizeof(unsigned)];
  std::memcpy(words, &item, sizeof(Item));
#pragma unroll
  for (unsigned& word : words) word = __shfl_down_sync(0xffffffffu, word, distance, width);
  Item other;
  std::memcpy(&other, words, sizeof(Item));
  return other;
}

// Over `width` neighbouring lanes, a power of two; the result is in the first of them.
template <class Item>
__device__ __forceinline__ Item reduce_lanes(Item item, int width) {
  for (int distance = width / 2; distance > 0; distance /= 2) item = merge(item, shuffle_down(item, distance, width));
  return item;
}

// Over a one-dimensional block of kThreads; the result is in thread 0.
template <class Item>
__device__ __forceinline__ Item reduce_block(Item item) {
  constexpr int kWarps = kThreads / kWarp;
  GK_SHARED(Item, shared, kWarps);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  item = reduce_lanes(item, kWarp);
  if (lane == 0) shared[warp] = item;
  __syncthreads();
  if (warp == 0) item = reduce_lanes(shared[lane % kWarps], kWarps);
  return item;
}

// Over threadIdx.y, kLanes items a thread; the results are in row 0. At most kThreads threads.
template <int kLanes, class Item>
__device__ __forceinline__ void reduce_rows(Item (&items)[kLanes]) {
  constexpr int kSlots = kThreads / 2;
  GK_SHARED(Item, shared, kLanes * kSlots);
  const int row = threadIdx.y, width = blockDim.x;
  for (int rows = blockDim.y; rows > 1;) {
    const int half = (rows + 1) / 2;
    if (row >= half && row < rows) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) shared[k * kSlots + (row - half) * width + threadIdx.x] = items[k];
    }
    __syncthreads();
    if (row + half < rows) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) items[k] = merge(items[k], shared[k * kSlots + row * width + threadIdx.x]);
    }
    __syncthreads();
    rows = half;
  }
}

}  // namespace gankernels

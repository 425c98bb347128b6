// How a cluster of blocks keeps all pixels of some channels in shared memory: [N, Q] steps, where a step is a vector of
// pixels (contiguous) or the channels of one pixel (channels_last). A block gets a rectangle of samples and steps, and
// reads it once, in 16-byte vectors: sizes that are not made of those have no clusters.
#pragma once

#include "cluster.cuh"
#include "conditional_batch_norm.cuh"

namespace gankernels::conditional_batch_norm::cuda {

constexpr int kMostGroupChannels = 32;  // 64 bytes
constexpr int kMostWarps = kThreads / kWarp;

// `blocks` is 0 where the channels do not fit, or where a cluster is of no use.
struct ClusterPlan {
  int blocks;                          // of a cluster
  int64_t groups;                      // of channels, one for each cluster
  int channels, vectors;               // of a group; in channels_last `vectors` make a step
  int sample_blocks;                   // blocks side by side over the samples; the rest are side by side over the steps
  int64_t steps;                       // Q, of a sample
  int64_t block_samples, block_steps;  // of a block
  int threads, lanes;                  // of a block; side by side over the steps of a sample
  int64_t shared_bytes;                // dynamic shared memory of a block

  GK_HOST_DEVICE int step_blocks() const { return blocks / sample_blocks; }
  GK_HOST_DEVICE int row_threads() const { return lanes * vectors; }
  GK_HOST_DEVICE int rows() const { return threads / row_threads(); }
  GK_HOST_DEVICE int row_warps() const { return row_threads() > kWarp ? row_threads() / kWarp : 1; }
  GK_HOST_DEVICE int64_t slice_vectors() const { return block_samples * block_steps * vectors; }
};

inline int64_t power_of_two_from(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

inline int vector_width(DType dtype) {
  return kVectorBytes / (dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2);
}

// The share of each block where a cluster of `blocks` has groups of `vectors`. Order 0 keeps x; order 1 keeps dy and x,
// and two sums for each sample and channel.
inline ClusterPlan plan_blocks(const Problem& p, int order, int vectors, int blocks) {
  const bool last = p.layout == Layout::kChannelsLast;
  const int width = vector_width(p.dtype);
  ClusterPlan plan = {};
  plan.blocks = blocks;
  plan.vectors = vectors;
  plan.channels = last ? vectors * width : 1;
  plan.groups = ceil_div<int64_t>(p.c, plan.channels);
  plan.steps = last ? p.l : p.l / width;
  // Whole samples where that leaves the largest share no larger: their sums then need no other block.
  for (int across = blocks; across >= 1; across /= 2) {
    const int64_t samples = ceil_div<int64_t>(p.n, across), steps = ceil_div<int64_t>(plan.steps, blocks / across);
    if (across < blocks && samples * steps >= plan.block_samples * plan.block_steps) continue;
    plan.sample_blocks = across;
    plan.block_samples = samples, plan.block_steps = steps;
  }
  plan.threads =
      static_cast<int>(std::max<int64_t>(kWarp, std::min<int64_t>(kThreads, power_of_two_from(plan.slice_vectors()))));
  // As many samples side by side as there are; but contiguous steps are neighbours in memory, and eight make 128 bytes.
  const int64_t rows = plan.threads / vectors, samples = std::min(rows, power_of_two_from(plan.block_samples));
  const int64_t neighbours = last ? 1 : power_of_two_from(std::min<int64_t>(8, plan.block_steps));
  plan.lanes = static_cast<int>(std::min(rows, std::max(rows / samples, neighbours)));
  plan.shared_bytes = plan.slice_vectors() * kVectorBytes;
  if (order == 1) {
    const int64_t sums = plan.block_samples * plan.row_warps() * plan.channels;
    plan.shared_bytes =
        2 * plan.shared_bytes + sums * 2 * (p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
  }
  return plan;
}

struct ClusterLimits {
  int most_blocks = kMostClusterBlocks;  // of a cluster
  int64_t blocks = 264;                  // of all clusters: two for each of 132 SMs, and fewer leave some idle
  int64_t roomy_bytes = 96 << 10;        // of a block: two share an SM, and one loads while the other stores
  int64_t least_bytes = 4 << 10;         // a block of fewer is not worth its barriers
};

// The cluster for order 0 or 1. Of the sizes alone, so that results do not depend on the GPU.
inline ClusterPlan plan_cluster(const Problem& p, int order, const ClusterLimits& limits = {}) {
  if (p.n * p.c * p.l == 0 || p.per_sample || (order == 0 && !p.batch_statistics)) return {};
  if ((p.layout == Layout::kChannelsLast ? p.c : p.l) % vector_width(p.dtype) != 0) return {};
  const auto with_vectors = [&](int vectors) {
    ClusterPlan plan = plan_blocks(p, order, vectors, 1);
    while (plan.blocks < limits.most_blocks) {
      const bool crowded = plan.shared_bytes > limits.roomy_bytes;
      const bool too_few = plan.groups * plan.blocks < limits.blocks && plan.shared_bytes >= 2 * limits.least_bytes;
      if (!crowded && !too_few) break;
      plan = plan_blocks(p, order, vectors, 2 * plan.blocks);
    }
    return plan;
  };
  if (p.layout == Layout::kContiguous) {
    const ClusterPlan plan = with_vectors(1);
    return plan.shared_bytes > kMostSliceBytes ? ClusterPlan{} : plan;
  }
  // 64 bytes of a pixel, or one sector of 32 where 64 are too much or leave SMs idle.
  const int64_t pixel = power_of_two_from(p.c / vector_width(p.dtype));
  ClusterPlan plan = with_vectors(static_cast<int>(std::min<int64_t>(4, pixel)));
  if (plan.shared_bytes > limits.roomy_bytes || plan.groups * plan.blocks < limits.blocks) {
    plan = with_vectors(static_cast<int>(std::min<int64_t>(2, pixel)));
  }
  return plan.shared_bytes > kMostSliceBytes ? ClusterPlan{} : plan;
}

#if GK_HAS_CLUSTERS

// A thread's share: in its block's samples row, row + rows, ..., of the steps lane, lane + lanes, ... one vector.
template <class Access>
struct Share {
  using T = typename Access::Element;
  static constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  static constexpr bool kLast = Access::kLayout == Layout::kChannelsLast;

  const ClusterPlan& plan;
  int64_t group_c, c;  // first channel of the group, and of the vector
  int64_t first_sample;
  int64_t offset, sample_stride, step_stride;  // of the vector in the block's first step of sample 0, in elements
  int vector, lane, row, samples, steps;       // samples and steps that the block has; no steps for no channel

  __device__ Share(const ClusterPlan& plan, const Problem& p, unsigned rank) : plan(plan) {
    const int thread = static_cast<int>(threadIdx.x);
    vector = thread % plan.vectors;
    lane = thread / plan.vectors % plan.lanes;
    row = thread / plan.row_threads();
    group_c = static_cast<int64_t>(blockIdx.x / plan.blocks) * plan.channels;
    c = group_c + vector * kLanes;
    first_sample = static_cast<int64_t>(rank / plan.step_blocks()) * plan.block_samples;
    const int64_t first_step = static_cast<int64_t>(rank % plan.step_blocks()) * plan.block_steps;
    samples = static_cast<int>(max(int64_t(0), min(plan.block_samples, p.n - first_sample)));
    steps = static_cast<int>(max(int64_t(0), min(plan.block_steps, plan.steps - first_step)));
    if (c >= p.c) steps = 0;
    step_stride = kLast ? p.c : kWidth;
    sample_stride = p.c * p.l;
    offset = (kLast ? c : c * p.l) + first_step * step_stride;
  }

  __device__ bool any() const { return row < samples && lane < steps; }
  __device__ int64_t offset_of(int sample, int step) const {
    return offset + (first_sample + sample) * sample_stride + step * step_stride;
  }
  __device__ int64_t first_offset() const { return offset_of(row, lane); }

  // Applies use(slot, offset, load(slot, offset)) to the vectors of one of the block's samples, kBatch of them in
  // flight at a time. `slot` is the vector's number in the block.
  template <int kBatch, class Load, class Use>
  __device__ __forceinline__ void stream(int sample, Load load, Use use) const {
    for (int step = lane; step < steps; step += kBatch * plan.lanes) {
      decltype(load(0, int64_t(0))) batch[kBatch];
      const int slot = (sample * static_cast<int>(plan.block_steps) + step) * plan.vectors + vector;
      const int64_t at = offset_of(sample, step);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int ahead = k * plan.lanes;
        if (step + ahead < steps) batch[k] = load(slot + ahead * plan.vectors, at + ahead * step_stride);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int ahead = k * plan.lanes;
        if (step + ahead < steps) use(slot + ahead * plan.vectors, at + ahead * step_stride, batch[k]);
      }
    }
  }
};

// Over the lanes of a warp that are `stride` apart, a power of two, among `width` neighbours; the results are in the
// first `stride` of those. All lanes of the warp must call.
template <int kLanes, class Item>
__device__ __forceinline__ void reduce_strided(Item (&items)[kLanes], int stride, int width) {
  for (int distance = width / 2; distance >= stride; distance /= 2) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) items[k] = merge(items[k], shuffle_down(items[k], distance, width));
  }
}

// Merges what `blocks` blocks of the cluster, from `first` on, hold where this one has `own`; to the same bits in all.
template <class Item>
__device__ __forceinline__ Item merge_cluster(Item* own, int first, int blocks) {
  auto cluster = cooperative_groups::this_cluster();
  Item item = *cluster.map_shared_rank(own, first);
  for (int rank = first + 1; rank < first + blocks; ++rank) item = merge(item, *cluster.map_shared_rank(own, rank));
  return item;
}

#endif  // GK_HAS_CLUSTERS

// Calls f(access, activation) for arrays that are made of 16-byte vectors; f returns whether it has launched.
template <class F>
bool with_vectors(const Problem& p, std::initializer_list<const void*> arrays, F f) {
  bool launched = false;
  with_access(p.dtype, p.layout, p.c, p.l, arrays, [&](auto access) -> int {
    using Access = decltype(access);
    if constexpr (Access::kWidth == kVectorWidth<typename Access::Element>) {
      return with_activation(p.activation, [&](auto act) -> int { return !(launched = f(access, act)); });
    }
    return 0;
  });
  return launched;
}

// The order in one launch, with its error in `launches`; false, and nothing done, where it does not suit the sizes or
// the device. With labels, backward_in_clusters leaves s0 and s1 in of_samples [N, C] and does not touch dgain and
// dbias.
bool forward_in_clusters(Launches& launches, const Forward& args, const ClusterLimits& limits = {});
bool backward_in_clusters(Launches& launches, const Backward& args, void* of_samples, const ClusterLimits& limits = {});

}  // namespace gankernels::conditional_batch_norm::cuda

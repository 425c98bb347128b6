// Conditional batch normalisation, order 1, with one read of x and dy: on GPUs with clusters, where a cluster's shared
// memory holds all pixels of a channel in both.
#include "conditional_batch_norm_cluster.cuh"
#include "conditional_batch_norm_pixels.cuh"

namespace gankernels::conditional_batch_norm::cuda {

// Bytes: 2*N*C*L elements in (dy, x), N*C*L out (dx). Between them dy and x are in shared memory, where a thread reads
// what it has written itself. s0 and s1 go to of_samples [N, C], or where that is null to dbias and dgain, which then
// have a row for each sample.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_cluster_kernel(Backward args, ClusterPlan plan,
                            Sums<Accumulator<typename Access::Element>, 2>* of_samples) {
#if GK_HAS_CLUSTERS
  using T = typename Access::Element;
  using A = Accumulator<T>;
  using Item = Sums<A, 2>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  using Values = Vector<T, kWidth>;
  GK_DYNAMIC_SHARED(Values, dys);
  GK_SHARED(Item, of_warps, kMostWarps * kMostGroupChannels);
  GK_SHARED(Item, of_block, kMostGroupChannels);
  GK_SHARED(BackwardTerms<A>, terms, kMostGroupChannels);
  Values* const xs = dys + plan.slice_vectors();
  auto* const sums = reinterpret_cast<Item*>(xs + plan.slice_vectors());  // [samples, row_warps, channels]
  auto cluster = cooperative_groups::this_cluster();
  const Problem& p = args.problem;
  const int rank = static_cast<int>(cluster.block_rank());
  const Share<Access> share(plan, p, rank);
  const int thread = static_cast<int>(threadIdx.x);
  const A slope = p.slope, eps = p.eps;
  const auto rstd_of = [&](int64_t c) { return reciprocal_deviation(static_cast<const A*>(args.var)[c], eps); };
  A mean[kLanes] = {}, rstd[kLanes] = {};
  if (share.any()) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      mean[k] = static_cast<const A*>(args.mean)[share.c + k], rstd[k] = rstd_of(share.c + k);
    }
  }

  const int segment = min(kWarp, plan.row_threads()), warp = thread % plan.row_threads() / kWarp;
  for (int64_t first = 0; first < plan.block_samples; first += plan.rows()) {
    const int sample = static_cast<int>(first) + share.row;
    Item items[kLanes] = {};
    if (sample < share.samples && share.lane < share.steps) {
      const Normalization<A, kLanes> norm(args, mean, rstd, share.first_sample + sample, share.c);
      share.template stream<kLanes == 8 ? 2 : 4>(
          sample, [&](int, int64_t offset) { return load_pixels<Access>(args, offset); },
          [&](int slot, int64_t, const Pixels<T, kWidth>& pixels) {
            dys[slot] = pixels.dy, xs[slot] = pixels.x;
            add_pixels<kAct>(items, pixels, norm, slope);
          });
    }
    reduce_strided(items, plan.vectors, segment);
    if (sample < plan.block_samples && thread % segment < plan.vectors) {
      Item* to = sums + (sample * plan.row_warps() + warp) * plan.channels + share.vector * kLanes;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) to[k] = items[k];
    }
  }
  __syncthreads();

  // From here on a thread has one channel, and every so many samples.
  const int channel = thread % plan.channels, row = thread / plan.channels, rows = plan.threads / plan.channels;
  const int64_t c = share.group_c + channel;
  const int step_blocks = plan.step_blocks(), step_rank = rank % step_blocks;
  const A channel_rstd = c < p.c ? rstd_of(c) : A(0);
  const auto sum_of = [&](int sample) { return sums + sample * plan.row_warps() * plan.channels + channel; };
  const auto write = [&](int sample, const Item& sum) {
    const int64_t plane = (share.first_sample + sample) * p.c + c;
    if (of_samples) {
      of_samples[plane] = sum;
    } else {
      write_gradients(args, plane, channel_rstd, sum);
    }
  };
  Item total[1] = {};
  for (int sample = row; sample < share.samples && c < p.c; sample += rows) {
    Item* const sum = sum_of(sample);
    for (int w = 1; w < plan.row_warps(); ++w) *sum = merge(*sum, sum[w * plan.channels]);
    if (step_blocks == 1) write(sample, *sum);
    const int64_t table_row = known_row(p, share.first_sample + sample);
    if (table_row < 0) continue;
    total[0] = merge(total[0], times_gain(args, table_row * p.c + c, *sum));
  }
  reduce_strided(total, plan.channels, kWarp);
  if (thread % kWarp < plan.channels) of_warps[thread / kWarp * plan.channels + channel] = total[0];
  __syncthreads();
  if (row == 0) {
    Item item = of_warps[channel];
    for (int w = 1; w < plan.threads / kWarp; ++w) item = merge(item, of_warps[w * plan.channels + channel]);
    of_block[channel] = item;
  }
  cluster.sync();
  if (row == 0) {
    terms[channel] = terms_of(p, channel_rstd, merge_cluster(of_block + channel, 0, plan.blocks));
  }
  if (step_blocks > 1 && c < p.c) {  // a sample's steps are in several blocks, and its sums are one's to write
    for (int sample = row * step_blocks + step_rank; sample < share.samples; sample += rows * step_blocks) {
      write(sample, merge_cluster(sum_of(sample), rank - step_rank, step_blocks));
    }
  }
  cluster.barrier_arrive();  // this block has read what the others hold
  __syncthreads();

  if (share.any()) {
    BackwardTerms<A> term[kLanes];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) term[k] = terms[share.vector * kLanes + k];
    for (int sample = share.row; sample < share.samples; sample += plan.rows()) {
      const Normalization<A, kLanes> norm(args, mean, rstd, share.first_sample + sample, share.c);
      share.template stream<2>(
          sample, [&](int slot, int64_t) { return Pixels<T, kWidth>{dys[slot], xs[slot]}; },
          [&](int, int64_t offset, const Pixels<T, kWidth>& pixels) {
            store(static_cast<T*>(args.dx) + offset, dx_of<kAct>(pixels, norm, term, slope));
          });
    }
  }
  cluster.barrier_wait();  // and the others have read what this one holds: it may end
#endif
}

bool backward_in_clusters(Launches& launches, const Backward& args, void* of_samples, const ClusterLimits& limits) {
  const Problem& p = args.problem;
  const ClusterPlan plan = plan_cluster(p, 1, limits);
  return plan.blocks > 0 && with_vectors(p, {args.dy, args.x, args.dx}, [&](auto access, auto act) {
           using Access = decltype(access);
           auto* sums = static_cast<Sums<Accumulator<typename Access::Element>, 2>*>(p.labels ? of_samples : nullptr);
           return launch_clusters(launches, backward_cluster_kernel<Access, act()>, plan.groups, plan.blocks,
                                  dim3(plan.threads), plan.shared_bytes, args, plan, sums);
         });
}

}  // namespace gankernels::conditional_batch_norm::cuda

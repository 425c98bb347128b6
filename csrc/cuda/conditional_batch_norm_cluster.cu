// Conditional batch normalisation, order 0, in one launch: on GPUs with clusters, where a cluster's shared memory holds
// all pixels of a channel.
#include "conditional_batch_norm_cluster.cuh"
#include "conditional_batch_norm_pixels.cuh"

namespace gankernels::conditional_batch_norm::cuda {

// Bytes: N*C*L elements in (x), as many out (y). Between them x is in shared memory, where a thread reads what it has
// written itself.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) forward_cluster_kernel(Forward args, ClusterPlan plan) {
#if GK_HAS_CLUSTERS
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  using Values = Vector<T, kWidth>;
  GK_DYNAMIC_SHARED(Values, kept);
  GK_SHARED(Moments<A>, of_warps, kMostWarps * kMostGroupChannels);
  GK_SHARED(Moments<A>, of_block, kMostGroupChannels);
  GK_SHARED(A, means, kMostGroupChannels);
  GK_SHARED(A, rstds, kMostGroupChannels);
  auto cluster = cooperative_groups::this_cluster();
  const Problem& p = args.problem;
  const Share<Access> share(plan, p, cluster.block_rank());
  const T* x = static_cast<const T*>(args.x);

  Moments<A> moments[kLanes] = {};
  if (share.any()) {
    Deviations<T, kLanes> deviations(load<kWidth>(x + share.first_offset()));
    int vectors = 0;
    for (int sample = share.row; sample < share.samples; sample += plan.rows()) {
      share.template stream<kLanes == 8 ? 4 : 8>(
          sample, [&](int, int64_t offset) { return load<kWidth>(x + offset); },
          [&](int slot, int64_t, const Values& xs) {
            kept[slot] = xs;
            ++vectors;
            deviations.add(xs);
          });
    }
    deviations.finish(moments, args, 0, share.c, static_cast<A>(vectors * (kWidth / kLanes)));
  }

  // Threads to warps, warps to the block, blocks to the cluster.
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  reduce_strided(moments, plan.vectors, kWarp);
  if (lane < plan.vectors) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) of_warps[thread / kWarp * plan.channels + lane * kLanes + k] = moments[k];
  }
  __syncthreads();
  if (thread < plan.channels) {
    Moments<A> item = of_warps[thread];
    for (int warp = 1; warp < plan.threads / kWarp; ++warp) item = merge(item, of_warps[warp * plan.channels + thread]);
    of_block[thread] = item;
  }
  cluster.sync();
  const int64_t c = share.group_c + thread;
  if (thread < plan.channels && c < p.c) {
    const Moments<A> item = merge_cluster(of_block + thread, 0, plan.blocks);
    const A mean = origin<T>(args, 0, c) + item.mean, var = item.m2 / item.count;
    means[thread] = mean;
    rstds[thread] = reciprocal_deviation(var, static_cast<A>(p.eps));
    if (cluster.block_rank() == 0) static_cast<A*>(args.mean)[c] = mean, static_cast<A*>(args.var)[c] = var;
  }
  cluster.barrier_arrive();  // this block has read what the others hold
  __syncthreads();

  if (share.any()) {
    A mean[kLanes], rstd[kLanes];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      mean[k] = means[share.vector * kLanes + k], rstd[k] = rstds[share.vector * kLanes + k];
    }
    const A slope = p.slope;
    for (int sample = share.row; sample < share.samples; sample += plan.rows()) {
      const Normalization<A, kLanes> norm(args, mean, rstd, share.first_sample + sample, share.c);
      share.template stream<4>(
          sample, [&](int slot, int64_t) { return kept[slot]; },
          [&](int, int64_t offset, const Values& xs) {
            store(static_cast<T*>(args.y) + offset, normalized<kAct>(xs, norm, slope));
          });
    }
  }
  cluster.barrier_wait();  // and the others have read what this one holds: it may end
#endif
}

bool forward_in_clusters(Launches& launches, const Forward& args, const ClusterLimits& limits) {
  const ClusterPlan plan = plan_cluster(args.problem, 0, limits);
  return plan.blocks > 0 && with_vectors(args.problem, {args.x, args.y}, [&](auto access, auto act) {
           return launch_clusters(launches, forward_cluster_kernel<decltype(access), act()>, plan.groups, plan.blocks,
                                  dim3(plan.threads), plan.shared_bytes, args, plan);
         });
}

}  // namespace gankernels::conditional_batch_norm::cuda

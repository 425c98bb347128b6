// Conditional batch normalisation, order 0, and the size of every order's workspace.
#include "conditional_batch_norm_cluster.cuh"
#include "conditional_batch_norm_pixels.cuh"

namespace gankernels::conditional_batch_norm::cuda {

// Bytes: N*C*L elements in (x); out the moments [slices, C] of the tiles.
template <class Access>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    moments_kernel(Forward args, Tiling tiling, Moments<Accumulator<typename Access::Element>>* partials) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const T* x = static_cast<const T*>(args.x);
  const Tile tile = Access::tile(tiling, blockIdx.x);
  Moments<A> moments[kLanes] = {};
  if (tile.count > 0) {
    Deviations<T, kLanes> deviations(load<kWidth>(x + tile.offset));
    stream<4>(
        tile, [&](int64_t offset) { return load<kWidth>(x + offset); },
        [&](int64_t, const Vector<T, kWidth>& xs) { deviations.add(xs); });
    deviations.finish(moments, args, tile.n, tile.c, static_cast<A>(tile.count * (kWidth / kLanes)));
  }
  Access::reduce(moments);
  if (!tile.leader) return;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) partials[tile.slice * tiling.c + tile.c + k] = moments[k];
}

// Merges the moments of a channel, `slices` of them, in the type of the results; NaN where there were no pixels. Bytes:
// moments [sets, slices, C] in, mean and var [sets, C] out, where a set is the batch or a sample.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    statistics_kernel(Forward args, const Moments<Accumulator<T>>* partials, int64_t slices) {
  using A = Accumulator<T>;
  const Problem& p = args.problem;
  const unsigned groups = ceil_div<int64_t>(p.c, kFinishX), set = blockIdx.x / groups;
  const int64_t c = static_cast<int64_t>(blockIdx.x % groups) * kFinishX + threadIdx.x;
  const bool exists = c < p.c;
  Moments<Out> moments[1] = {};
  if (exists) {
    for (int64_t s = threadIdx.y; s < slices; s += blockDim.y) {
      const Moments<A> partial = partials[(set * slices + s) * p.c + c];
      moments[0] = merge(moments[0], {partial.count, partial.mean, partial.m2});
    }
  }
  reduce_rows(moments);
  if (threadIdx.y != 0 || !exists) return;
  const Out var = moments[0].m2 / moments[0].count;
  static_cast<Out*>(args.mean)[set * p.c + c] =
      moments[0].count == 0 ? var : static_cast<Out>(origin<T>(args, set, c)) + moments[0].mean;
  static_cast<Out*>(args.var)[set * p.c + c] = var;
}

// Bytes: N*C*L elements in (x), as many out (y). From the end to the beginning, since the end of x is what the pass
// before has left in the cache.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) normalize_kernel(Forward args, Tiling tiling) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const Tile tile = Access::tile(tiling, gridDim.x - 1 - blockIdx.x);
  if (tile.count == 0) return;
  const Normalization<A, kLanes> norm(args, tile);
  const A slope = args.problem.slope;
  stream<4>(
      tile, [&](int64_t offset) { return load<kWidth>(x + offset); },
      [&](int64_t offset, const Vector<T, kWidth>& xs) { store(y + offset, normalized<kAct>(xs, norm, slope)); });
}

namespace {

template <class Access, class Out>
void launch_statistics(Launches& launches, const Forward& args, void* workspace) {
  using T = typename Access::Element;
  const Problem& p = args.problem;
  const Tiling tiling = tile_batch(p, Access::kWidth);
  auto* partials = static_cast<Moments<Accumulator<T>>*>(workspace);  // [slices, C]
  launches(moments_kernel<Access>, tiling.blocks, tiling.threads(), args, tiling, partials);
  const int64_t sets = p.per_sample ? p.n : 1;
  launches(statistics_kernel<T, Out>, sets * ceil_div<int64_t>(p.c, kFinishX), finish_threads(), args, partials,
           sets > 0 ? tiling.slices() / sets : 0);
}

}  // namespace

int forward(const Forward& args, void* workspace, void* stream) {
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  Launches in_clusters{stream};
  if (forward_in_clusters(in_clusters, args)) return in_clusters.error;
  return with_access(p.dtype, p.layout, p.c, p.l, {args.x, args.y}, [&](auto access) {
    return with_activation(p.activation, [&](auto act) -> int {
      using Access = decltype(access);
      Launches launches{stream};
      if (p.batch_statistics) {
        launch_statistics<Access, Accumulator<typename Access::Element>>(launches, args, workspace);
      }
      const Tiling tiling = tile_pictures(p, Access::kWidth);
      launches(normalize_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling);
      return launches.error;
    });
  });
}

int statistics(const Forward& args, void* workspace, void* stream) {
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  return with_access(p.dtype, p.layout, p.c, p.l, {args.x}, [&](auto access) -> int {
    Launches launches{stream};
    launch_statistics<decltype(access), double>(launches, args, workspace);
    return launches.error;
  });
}

int64_t workspace_bytes(const Problem& p, int order) {
  const int64_t accumulator = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  int64_t most = 0;
  // Which width runs depends on the alignment of the pointers, which is not known here.
  for (int width = 1; width <= kVectorWidth<__half>; width *= 2) {
    const int64_t partials = (order == 0 ? tile_batch(p, width) : tile_pictures(p, width)).slices() * p.c;
    const int64_t planes = p.n * p.c, rows = p.rows() * p.c;
    if (order == 0) most = std::max(most, 3 * partials);
    if (order == 1) most = std::max(most, 2 * (partials + planes + p.statistics()));
    if (order == 2) most = std::max(most, 5 * (partials + planes) + 2 * rows + 3 * p.statistics());
  }
  return most * accumulator + order_bytes(p);
}

}  // namespace gankernels::conditional_batch_norm::cuda

// Conditional batch normalisation, order 1.
#include "conditional_batch_norm_cluster.cuh"
#include "conditional_batch_norm_pixels.cuh"

namespace gankernels::conditional_batch_norm::cuda {

// Bytes: 2*N*C*L elements in (dy, x); out s0 and s1 of the tiles, [N, splits, C].
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_sums_kernel(Backward args, Tiling tiling, Sums<Accumulator<typename Access::Element>, 2>* partials) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const Tile tile = Access::tile(tiling, blockIdx.x);
  Sums<A, 2> sums[kLanes] = {};
  if (tile.count > 0) {
    const Normalization<A, kLanes> norm(args, tile);
    const A slope = args.problem.slope;
    stream<4>(
        tile, [&](int64_t offset) { return load_pixels<Access>(args, offset); },
        [&](int64_t, const Pixels<T, kWidth>& pixels) { add_pixels<kAct>(sums, pixels, norm, slope); });
  }
  Access::reduce(sums);
  if (!tile.leader) return;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) partials[tile.slice * tiling.c + tile.c + k] = sums[k];
}

// Bytes: sums [N, C] and gain in; dgain, dbias (of the rows that the batch has) and terms [C] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_terms_kernel(Backward args, const Sums<A, 2>* sums, BackwardTerms<A>* terms) {
  const Problem& p = args.problem;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishX + threadIdx.x;
  Sums<A, 2> total[1] = {};
  A rstd = 0;
  if (c < p.c) {
    rstd = reciprocal_deviation(static_cast<const A*>(args.var)[c], static_cast<A>(p.eps));
    for_each_row(p, sums, c, [&](int64_t row, const Sums<A, 2>& sum) {
      const int64_t plane = row * p.c + c;
      total[0] = merge(total[0], times_gain(args, plane, sum));
      write_gradients(args, plane, rstd, sum);
    });
  }
  reduce_rows(total);
  if (threadIdx.y == 0 && c < p.c) terms[c] = terms_of(p, rstd, total[0]);
}

// Bytes: terms [2, C] in, [C] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    pack_backward_terms_kernel(const A* given, BackwardTerms<A>* terms, int64_t c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < c) terms[i] = {given[i], given[c + i]};
}

// Bytes: 2*N*C*L elements in (dy, x), N*C*L out (dx). From the end, for what the sums have left in the cache.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_kernel(Backward args, Tiling tiling, const BackwardTerms<Accumulator<typename Access::Element>>* terms) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const Tile tile = Access::tile(tiling, gridDim.x - 1 - blockIdx.x);
  if (tile.count == 0) return;
  const Normalization<A, kLanes> norm(args, tile);
  const A slope = args.problem.slope;
  const int64_t statistic = args.problem.statistic(tile.n, tile.c);
  BackwardTerms<A> term[kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) term[k] = terms[statistic + k];
  stream<4>(
      tile, [&](int64_t offset) { return load_pixels<Access>(args, offset); },
      [&](int64_t offset, const Pixels<T, kWidth>& pixels) {
        store(static_cast<T*>(args.dx) + offset, dx_of<kAct>(pixels, norm, term, slope));
      });
}

namespace {

// Leaves s0 and s1 of every sample in sums [N, C].
template <class Access, Activation kAct, class A>
void launch_sums(Launches& launches, const Backward& args, const Tiling& tiling, Sums<A, 2>* sums,
                 Sums<A, 2>* partials) {
  launches(backward_sums_kernel<Access, kAct>, tiling.blocks, tiling.threads(), args, tiling,
           tiling.splits > 1 ? partials : sums);
  fold(launches, tiling, partials, sums);
}

// Calls f(access, activation, tiling), which returns a cudaError_t.
template <class F>
int with_kernels(const Backward& args, F f) {
  const Problem& p = args.problem;
  return with_access(p.dtype, p.layout, p.c, p.l, {args.dy, args.x, args.dx}, [&](auto access) {
    return with_activation(p.activation,
                           [&](auto act) -> int { return f(access, act, tile_pictures(p, decltype(access)::kWidth)); });
  });
}

}  // namespace

int backward(const Backward& given, void* workspace, void* stream) {
  Backward args = given;
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  if (p.n * p.c * p.l == 0) return clear_rows(p, {args.dgain, args.dbias}, stream);
  Launches launches{stream};
  workspace = begin_with_order(launches, args, workspace);
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    auto* sums = static_cast<Sums<A, 2>*>(workspace);                        // [N, C]
    auto* terms = reinterpret_cast<BackwardTerms<A>*>(sums + p.n * p.c);     // [statistics]
    auto* partials = reinterpret_cast<Sums<A, 2>*>(terms + p.statistics());  // [N, splits, C]
    const bool in_clusters = backward_in_clusters(launches, args, sums);
    if (in_clusters && !p.labels) return launches.error;  // it has written dgain and dbias
    if (!in_clusters) launch_sums<Access, act()>(launches, args, tiling, sums, partials);
    launches(backward_terms_kernel<A>, ceil_div<int64_t>(p.statistics(), kFinishX), finish_threads(),
             as_one_sample(args), sums, terms);
    if (in_clusters) return launches.error;
    launches(backward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling, terms);
    return launches.error;
  });
}

int backward_sums(const Backward& given, void* sums, void* workspace, void* stream) {
  Backward args = given;
  if (!supported(args.problem)) return cudaErrorInvalidValue;
  Launches launches{stream};
  workspace = begin_with_order(launches, args, workspace);
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    sums_of_rows<A, 2>(launches, args.problem, sums, workspace, [&](Sums<A, 2>* of_samples, Sums<A, 2>* partials) {
      launch_sums<Access, act()>(launches, args, tiling, of_samples, partials);
    });
    return launches.error;
  });
}

int backward_apply(const Backward& args, const void* given, void* workspace, void* stream) {
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    auto* terms = static_cast<BackwardTerms<A>*>(workspace);  // [C]
    Launches launches{stream};
    launches(pack_backward_terms_kernel<A>, ceil_div<int64_t>(p.c, kThreads), dim3(kThreads),
             static_cast<const A*>(given), terms, p.c);
    launches(backward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling, terms);
    return launches.error;
  });
}

}  // namespace gankernels::conditional_batch_norm::cuda

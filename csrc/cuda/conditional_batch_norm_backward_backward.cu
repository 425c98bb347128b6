// Conditional batch normalisation, order 2.
#include "conditional_batch_norm.cuh"

namespace gankernels::conditional_batch_norm::cuda {
namespace {

// Neighbouring elements of the three tensors that both passes read.
template <class T, int kWidth>
struct Pixels {
  Vector<T, kWidth> ddx, dy, x;
};

template <class Access>
__device__ __forceinline__ auto load_pixels(const BackwardBackward& args, int64_t offset) {
  using T = typename Access::Element;
  constexpr int kWidth = Access::kWidth;
  return Pixels<T, kWidth>{load<kWidth>(static_cast<const T*>(args.ddx) + offset),
                           load<kWidth>(static_cast<const T*>(args.dy) + offset),
                           load<kWidth>(static_cast<const T*>(args.x) + offset)};
}

}  // namespace

// Bytes: 3*N*C*L elements in (ddx, dy, x); out s0, s1, t0, t1 and u of the tiles, [N, splits, C].
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_backward_sums_kernel(BackwardBackward args, Tiling tiling,
                                  Sums<Accumulator<typename Access::Element>, 5>* partials) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const Tile tile = Access::tile(tiling, blockIdx.x);
  Sums<A, 5> sums[kLanes] = {};
  if (tile.count > 0) {
    const Normalization<A, kLanes> norm(args, tile);
    const A slope = args.problem.slope;
    stream<4>(
        tile, [&](int64_t offset) { return load_pixels<Access>(args, offset); },
        [&](int64_t, const Pixels<T, kWidth>& pixels) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            const int k = i % kLanes;
            const A deviation = static_cast<A>(pixels.x.at[i]) - norm.mean[k], ddx = static_cast<A>(pixels.ddx.at[i]);
            const A dz = activate_backward<kAct>(norm.z(deviation, k), static_cast<A>(pixels.dy.at[i]), slope);
            sums[k] = merge(sums[k], {dz, dz * deviation, ddx, ddx * deviation, dz * ddx});
          }
        });
  }
  Access::reduce(sums);
  if (!tile.leader) return;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) partials[tile.slice * tiling.c + tile.c + k] = sums[k];
}

// Bytes: sums [N, C] twice, gain, ddgain, ddbias in; dgain and row terms (of the rows that the batch has), channel
// terms [C] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_backward_terms_kernel(BackwardBackward args, const Sums<A, 5>* sums, RowTerms<A>* row_terms,
                                   ChannelTerms<A>* channel) {
  const Problem& p = args.problem;
  const A *gains = static_cast<const A*>(args.gain), *ddgains = static_cast<const A*>(args.ddgain);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishX + threadIdx.x;
  GK_SHARED(ChannelMeans<A>, means, kFinishX);
  Sums<A, 7> total[1] = {};
  A rstd = 0;
  if (c < p.c) {
    rstd = reciprocal_deviation(static_cast<const A*>(args.var)[c], static_cast<A>(p.eps));
    for_each_row(p, sums, c, [&](int64_t row, const Sums<A, 5>& sum) {
      const A gain = gains[row * p.c + c], ddgain = ddgains[row * p.c + c];
      const A s0 = sum.at[0], s1 = rstd * sum.at[1], t0 = sum.at[2], t1 = rstd * sum.at[3], u = sum.at[4];
      total[0] = merge(total[0], {gain * s0, gain * s1, t0, t1, gain * u, ddgain * s0, ddgain * s1});
    });
  }
  reduce_rows(total);
  if (threadIdx.y == 0) {
    const A share = p.batch_statistics ? 1 / static_cast<A>(p.n * p.l) : A(0);
    const A* m = total[0].at;
    means[threadIdx.x] = {share * m[0], share * m[1], share * m[2], share * m[3],
                          share * m[4], share * m[5], share * m[6]};
    if (c < p.c) channel[c] = channel_terms(rstd, means[threadIdx.x]);
  }
  __syncthreads();
  if (c >= p.c) return;
  const ChannelMeans<A> m = means[threadIdx.x];
  for_each_row(p, sums, c, [&](int64_t row, const Sums<A, 5>& sum) {
    const int64_t plane = row * p.c + c;
    static_cast<A*>(args.dgain)[plane] = second_order_dgain(rstd, sum.at[0], sum.at[1], sum.at[4], m);
    row_terms[plane] = gankernels::conditional_batch_norm::row_terms(rstd, gains[plane] * rstd, ddgains[plane],
                                                                     static_cast<const A*>(args.ddbias)[plane], m);
  });
}

// Bytes: given [5, C], gain, ddgain, ddbias [rows, C] in; row terms [rows, C], channel terms [C] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    pack_backward_backward_terms_kernel(BackwardBackward args, const A* given, RowTerms<A>* row_terms,
                                        ChannelTerms<A>* channel) {
  const Problem& p = args.problem;
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, c = plane % p.c;
  if (plane >= p.rows() * p.c) return;
  if (plane < p.c) channel[c] = {given[c], given[p.c + c], given[2 * p.c + c]};
  const A rstd = reciprocal_deviation(static_cast<const A*>(args.var)[c], static_cast<A>(p.eps));
  ChannelMeans<A> means;
  means.a = given[3 * p.c + c];
  means.ax = given[4 * p.c + c];
  row_terms[plane] = gankernels::conditional_batch_norm::row_terms(rstd, static_cast<const A*>(args.gain)[plane] * rstd,
                                                                   static_cast<const A*>(args.ddgain)[plane],
                                                                   static_cast<const A*>(args.ddbias)[plane], means);
}

// Bytes: 3*N*C*L elements in (ddx, dy, x), 2*N*C*L out (ddy, dx). From the end, for what the sums have left in the
// cache.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_backward_kernel(BackwardBackward args, Tiling tiling,
                             const RowTerms<Accumulator<typename Access::Element>>* row_terms,
                             const ChannelTerms<Accumulator<typename Access::Element>>* channel_terms) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const Tile tile = Access::tile(tiling, gridDim.x - 1 - blockIdx.x);
  if (tile.count == 0) return;
  const Normalization<A, kLanes> norm(args, tile);
  const A slope = args.problem.slope;
  const int64_t row = known_row(args.problem, tile.n), statistic = args.problem.statistic(tile.n, tile.c);
  RowTerms<A> of_row[kLanes];
  ChannelTerms<A> channel[kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    of_row[k] = row < 0 ? RowTerms<A>{NAN, NAN} : row_terms[row * tiling.c + tile.c + k];
    channel[k] = channel_terms[statistic + k];
  }
  constexpr int kBatch = kWidth == 8 && kLanes == 1 ? 3 : 4;  // more does not fit the registers
  stream<kBatch>(
      tile, [&](int64_t offset) { return load_pixels<Access>(args, offset); },
      [&](int64_t offset, const Pixels<T, kWidth>& pixels) {
        Vector<T, kWidth> ddys, dxs;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const int k = i % kLanes;
          const A deviation = static_cast<A>(pixels.x.at[i]) - norm.mean[k], ddx = static_cast<A>(pixels.ddx.at[i]);
          const A z = norm.z(deviation, k);
          const A dz = activate_backward<kAct>(z, static_cast<A>(pixels.dy.at[i]), slope);
          const A ddz = norm.scale[k] * ddx + of_row[k].of_dz * deviation + of_row[k].of_mask;
          ddys.at[i] = static_cast<T>(activate_backward<kAct>(z, ddz, slope));
          dxs.at[i] = static_cast<T>(channel[k].of_ddx * ddx + of_row[k].of_dz * dz + channel[k].of_x * deviation +
                                     channel[k].of_1);
        }
        store(static_cast<T*>(args.ddy) + offset, ddys);
        store(static_cast<T*>(args.dx) + offset, dxs);
      });
}

namespace {

// Leaves the sums of every sample in sums [N, C].
template <class Access, Activation kAct, class A>
void launch_sums(Launches& launches, const BackwardBackward& args, const Tiling& tiling, Sums<A, 5>* sums,
                 Sums<A, 5>* partials) {
  launches(backward_backward_sums_kernel<Access, kAct>, tiling.blocks, tiling.threads(), args, tiling,
           tiling.splits > 1 ? partials : sums);
  fold(launches, tiling, partials, sums);
}

// Calls f(access, activation, tiling), which returns a cudaError_t.
template <class F>
int with_kernels(const BackwardBackward& args, F f) {
  const Problem& p = args.problem;
  return with_access<4>(p.dtype, p.layout, p.c, p.l, {args.ddx, args.dy, args.x, args.ddy, args.dx}, [&](auto access) {
    return with_activation(p.activation,
                           [&](auto act) -> int { return f(access, act, tile_pictures(p, decltype(access)::kWidth)); });
  });
}

}  // namespace

int backward_backward(const BackwardBackward& given, void* workspace, void* stream) {
  BackwardBackward args = given;
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  if (p.n * p.c * p.l == 0) return clear_rows(p, {args.dgain}, stream);
  Launches launches{stream};
  workspace = begin_with_order(launches, args, workspace);
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    auto* sums = static_cast<Sums<A, 5>*>(workspace);                                      // [N, C]
    auto* row_terms = reinterpret_cast<RowTerms<A>*>(sums + p.n * p.c);                    // [rows, C]
    auto* channel_terms = reinterpret_cast<ChannelTerms<A>*>(row_terms + p.rows() * p.c);  // [statistics]
    auto* partials = reinterpret_cast<Sums<A, 5>*>(channel_terms + p.statistics());        // [N, splits, C]
    launch_sums<Access, act()>(launches, args, tiling, sums, partials);
    launches(backward_backward_terms_kernel<A>, ceil_div<int64_t>(p.statistics(), kFinishX), finish_threads(),
             as_one_sample(args), sums, row_terms, channel_terms);
    launches(backward_backward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling, row_terms,
             channel_terms);
    return launches.error;
  });
}

int backward_backward_sums(const BackwardBackward& given, void* sums, void* workspace, void* stream) {
  BackwardBackward args = given;
  if (!supported(args.problem)) return cudaErrorInvalidValue;
  Launches launches{stream};
  workspace = begin_with_order(launches, args, workspace);
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    sums_of_rows<A, 5>(launches, args.problem, sums, workspace, [&](Sums<A, 5>* of_samples, Sums<A, 5>* partials) {
      launch_sums<Access, act()>(launches, args, tiling, of_samples, partials);
    });
    return launches.error;
  });
}

int backward_backward_apply(const BackwardBackward& args, const void* given, void* workspace, void* stream) {
  const Problem& p = args.problem;
  if (!supported(p)) return cudaErrorInvalidValue;
  return with_kernels(args, [&](auto access, auto act, const Tiling& tiling) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    auto* row_terms = static_cast<RowTerms<A>*>(workspace);                                // [rows, C]
    auto* channel_terms = reinterpret_cast<ChannelTerms<A>*>(row_terms + p.rows() * p.c);  // [C]
    Launches launches{stream};
    launches(pack_backward_backward_terms_kernel<A>, ceil_div<int64_t>(p.rows() * p.c, kThreads), dim3(kThreads), args,
             static_cast<const A*>(given), row_terms, channel_terms);
    launches(backward_backward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling, row_terms,
             channel_terms);
    return launches.error;
  });
}

}  // namespace gankernels::conditional_batch_norm::cuda

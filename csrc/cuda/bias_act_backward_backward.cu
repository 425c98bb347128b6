// bias_act, order 2.
#include "bias_act.cuh"

namespace gankernels::bias_act::cuda {

// Piecewise linear. Bytes: ddx and x in, ddy out. x may be null (csrc/bias_act.h).
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    bias_act_backward_backward_kernel(BackwardBackward args, Tiling tiling) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  struct Operands {
    Vector<T, kWidth> ddx, x;
  };
  const T *ddx = static_cast<const T*>(args.ddx), *x = static_cast<const T*>(args.x);
  T* ddy = static_cast<T*>(args.ddy);
  const Tile tile = Access::tile(tiling, blockIdx.x);
  if (tile.count == 0) return;
  const Constants<A> constants(args.problem);
  const PerChannel<A, kLanes> bias(args.bias, tile), ddbias(args.ddbias, tile);
  stream<kBackwardBatch<kAct, kLanes>>(
      tile,
      [&](int64_t offset) {
        return Operands{load<kWidth>(ddx + offset), x ? load<kWidth>(x + offset) : Vector<T, kWidth>{}};
      },
      [&](int64_t offset, const Operands& in) {
        Vector<T, kWidth> ddys;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const int k = i % kLanes;
          const A z = static_cast<A>(in.x.at[i]) + bias.at[k], a = static_cast<A>(in.ddx.at[i]) + ddbias.at[k];
          ddys.at[i] = static_cast<T>(bias_act::second_ddy<kAct, StandardMath>(z, a, constants));
        }
        store(ddy + offset, ddys);
      });
}

// Smooth. Bytes: ddx, dy and x in, ddy and dx out; partials [slices, channels] out where they are wanted.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    bias_act_smooth_backward_backward_kernel(BackwardBackward args, Tiling tiling,
                                             Sums<Accumulator<typename Access::Element>, 1>* partials) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  struct Operands {
    Vector<T, kWidth> ddx, dy, x;
  };
  const T *ddx = static_cast<const T*>(args.ddx), *dy = static_cast<const T*>(args.dy),
          *x = static_cast<const T*>(args.x);
  T *ddy = static_cast<T*>(args.ddy), *dx = static_cast<T*>(args.dx);
  const Tile tile = Access::tile(tiling, blockIdx.x);
  Sums<A, 1> sums[kLanes] = {};
  if (tile.count > 0) {
    const Constants<A> constants(args.problem);
    const PerChannel<A, kLanes> bias(args.bias, tile), ddbias(args.ddbias, tile);
    stream<kBackwardBatch<kAct, kLanes>>(
        tile,
        [&](int64_t offset) {
          return Operands{load<kWidth>(ddx + offset), load<kWidth>(dy + offset), load<kWidth>(x + offset)};
        },
        [&](int64_t offset, const Operands& in) {
          Vector<T, kWidth> ddys, dxs;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            const int k = i % kLanes;
            const A z = static_cast<A>(in.x.at[i]) + bias.at[k], a = static_cast<A>(in.ddx.at[i]) + ddbias.at[k];
            const A dz = bias_act::second_dz<kAct, StandardMath>(z, a, static_cast<A>(in.dy.at[i]), constants);
            sums[k].at[0] += dz;
            ddys.at[i] = static_cast<T>(bias_act::second_ddy<kAct, StandardMath>(z, a, constants));
            dxs.at[i] = static_cast<T>(dz);
          }
          store(ddy + offset, ddys);
          store(dx + offset, dxs);
        });
  }
  if (partials) store_sums<Access>(sums, partials, tiling, tile);
}

int backward_backward(const BackwardBackward& args, void* workspace, void* stream) {
  const auto arrays = {args.ddx, args.dy, args.x, static_cast<const void*>(args.ddy),
                       static_cast<const void*>(args.dx)};
  return with_kernel(args.problem, arrays, [&](auto access, auto act) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    constexpr Activation kAct = act();
    Launches launches{stream};
    const Tiling tiling = tile(args.problem, Access::kWidth);
    if constexpr (is_piecewise_linear(kAct)) {
      launches(bias_act_backward_backward_kernel<Access, kAct>, tiling.blocks, tiling.threads(), args, tiling);
    } else {
      auto* partials = static_cast<Sums<A, 1>*>(args.dbias ? workspace : nullptr);
      launches(bias_act_smooth_backward_backward_kernel<Access, kAct>, tiling.blocks, tiling.threads(), args, tiling,
               partials);
      if (partials) finish(launches, tiling, partials, args.dbias);
    }
    return launches.error;
  });
}

}  // namespace gankernels::bias_act::cuda

// bias_act, order 1.
#include "bias_act.cuh"

namespace gankernels::bias_act::cuda {

// Bytes: dy and x in, dx out; partials [slices, channels] out where they are wanted. x may be null (csrc/bias_act.h).
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    bias_act_backward_kernel(Backward args, Tiling tiling, Sums<Accumulator<typename Access::Element>, 1>* partials) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  struct Operands {
    Vector<T, kWidth> dy, x;
  };
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  T* dx = static_cast<T*>(args.dx);
  const Tile tile = Access::tile(tiling, blockIdx.x);
  Sums<A, 1> sums[kLanes] = {};
  if (tile.count > 0) {
    const Constants<A> constants(args.problem);
    const PerChannel<A, kLanes> bias(args.bias, tile);
    stream<kBackwardBatch<kAct, kLanes>>(
        tile,
        [&](int64_t offset) {
          return Operands{load<kWidth>(dy + offset), x ? load<kWidth>(x + offset) : Vector<T, kWidth>{}};
        },
        [&](int64_t offset, const Operands& in) {
          Vector<T, kWidth> dxs;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            const int k = i % kLanes;
            const A z = static_cast<A>(in.x.at[i]) + bias.at[k];
            const A dz = bias_act::backward<kAct, StandardMath>(z, static_cast<A>(in.dy.at[i]), constants);
            sums[k].at[0] += dz;
            dxs.at[i] = static_cast<T>(dz);
          }
          store(dx + offset, dxs);
        });
  }
  if (partials) store_sums<Access>(sums, partials, tiling, tile);
}

int backward(const Backward& args, void* workspace, void* stream) {
  return with_kernel(args.problem, {args.dy, args.x, args.dx}, [&](auto access, auto act) -> int {
    using Access = decltype(access);
    using A = Accumulator<typename Access::Element>;
    Launches launches{stream};
    const Tiling tiling = tile(args.problem, Access::kWidth);
    auto* partials = static_cast<Sums<A, 1>*>(args.dbias ? workspace : nullptr);
    launches(bias_act_backward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling, partials);
    if (partials) finish(launches, tiling, partials, args.dbias);
    return launches.error;
  });
}

}  // namespace gankernels::bias_act::cuda

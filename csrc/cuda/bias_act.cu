// bias_act, order 0, and the size of the workspace.
#include "bias_act.cuh"

namespace gankernels::bias_act::cuda {

// Bytes: x in, y out.
template <class Access, Activation kAct>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) bias_act_forward_kernel(Forward args, Tiling tiling) {
  using T = typename Access::Element;
  using A = Accumulator<T>;
  constexpr int kWidth = Access::kWidth, kLanes = Access::kLanes;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const Tile tile = Access::tile(tiling, blockIdx.x);
  if (tile.count == 0) return;
  const Constants<A> constants(args.problem);
  const PerChannel<A, kLanes> bias(args.bias, tile);
  stream<kBatch<kAct>>(
      tile, [&](int64_t offset) { return load<kWidth>(x + offset); },
      [&](int64_t offset, const Vector<T, kWidth>& xs) {
        Vector<T, kWidth> ys;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const A z = static_cast<A>(xs.at[i]) + bias.at[i % kLanes];
          ys.at[i] = static_cast<T>(bias_act::forward<kAct, StandardMath>(z, constants));
        }
        store(y + offset, ys);
      });
}

int forward(const Forward& args, void*, void* stream) {
  return with_kernel(args.problem, {args.x, args.y}, [&](auto access, auto act) -> int {
    using Access = decltype(access);
    Launches launches{stream};
    const Tiling tiling = tile(args.problem, Access::kWidth);
    launches(bias_act_forward_kernel<Access, act()>, tiling.blocks, tiling.threads(), args, tiling);
    return launches.error;
  });
}

int64_t workspace_bytes(const Problem& p) {
  int64_t slices = 0;
  // Which width runs depends on the alignment of the pointers, which is not known here.
  for (int width = 1; width <= kVectorWidth<__half>; width *= 2) slices = std::max(slices, tile(p, width).slices());
  return slices * p.channels * static_cast<int64_t>(p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

}  // namespace gankernels::bias_act::cuda

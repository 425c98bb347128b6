// fold_conv_weight on the GPU: both directions, in every layout.
#include "../fold_conv_weight.h"
#include "launch.cuh"
#include "vector.cuh"

namespace gankernels::fold_conv_weight::cuda {

constexpr int kTile = 32;  // channels a side of a block's tile of pairs
constexpr int kRows = 8;   // of threads
constexpr int kPitch = kTile + 1;

// A channel pair as this block counts them: along the result's memory, and across it.
struct Walk {
  int64_t along, across;  // channels
  int64_t from_along, from_across, to_along, to_across;
};

inline Walk walk_of(const Problem& p) {
  if (along_outputs(p)) return {p.outputs, p.inputs, p.from.output, p.from.input, p.to.output, p.to.input};
  return {p.inputs, p.outputs, p.from.input, p.from.output, p.to.input, p.to.output};
}

template <class A, class T>
__device__ __forceinline__ A fold_tap(const Problem& p, const T* from, int y, int x) {
  const int uy = last_source(p, y), ux = last_source(p, x);
  A sum = 0;
  for (int sy = max(uy - 1, 0); sy <= min(uy, p.from_taps - 1); ++sy) {
    A pair = 0;
    for (int sx = max(ux - 1, 0); sx <= min(ux, p.from_taps - 1); ++sx)
      pair += static_cast<A>(from[(sy * p.from_taps + sx) * p.from.tap]);
    sum += pair;
  }
  return sum * static_cast<A>(scale(p));
}

// A block folds one row of taps for a tile of channel pairs. Where neighbours in the source are not neighbours in the
// result, a tap of the tile is transposed in shared memory, so that both are walked along their lines. Bytes: the
// source in, once from memory and again from the caches; the result out.
template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) fold_conv_weight_kernel(Args args, Walk walk) {
  using A = Accumulator<T>;
  const Problem& p = args.problem;
  const T* from = static_cast<const T*>(args.from);
  T* to = static_cast<T*>(args.to);
  const int64_t blocks = ceil_div<int64_t>(walk.along, kTile), tile = blockIdx.x / p.to_taps;
  const int64_t first = tile % blocks * kTile, first_row = tile / blocks * kTile;
  const int y = static_cast<int>(blockIdx.x % p.to_taps), tx = threadIdx.x, ty = threadIdx.y;
  if constexpr (!kTransposed) {
    const int64_t a = first + tx;
    for (int r = ty; r < kTile; r += kRows) {
      const int64_t c = first_row + r;
      if (a >= walk.along || c >= walk.across) continue;
      for (int x = 0; x < p.to_taps; ++x)
        to[a * walk.to_along + c * walk.to_across + (y * p.to_taps + x) * p.to.tap] =
            static_cast<T>(fold_tap<A>(p, from + a * walk.from_along + c * walk.from_across, y, x));
    }
  } else {
    GK_SHARED(A, folded, 2 * kTile * kPitch);  // two taps, so that one is written while the other is read
    for (int x = 0; x < p.to_taps; ++x) {
      A* const mine = folded + x % 2 * kTile * kPitch;
      for (int r = ty; r < kTile; r += kRows) {
        const int64_t a = first + r, c = first_row + tx;
        if (a < walk.along && c < walk.across)
          mine[r * kPitch + tx] = fold_tap<A>(p, from + a * walk.from_along + c * walk.from_across, y, x);
      }
      __syncthreads();
      for (int r = ty; r < kTile; r += kRows) {
        const int64_t a = first + tx, c = first_row + r;
        if (a < walk.along && c < walk.across)
          to[a * walk.to_along + c * walk.to_across + (y * p.to_taps + x) * p.to.tap] =
              static_cast<T>(mine[tx * kPitch + r]);
      }
    }
  }
}

template <class T>
int fold_in(const Args& args, void* stream) {
  const Problem& p = args.problem;
  const Walk walk = walk_of(p);
  const int64_t tiles = ceil_div<int64_t>(walk.along, kTile) * ceil_div<int64_t>(walk.across, kTile);
  const bool transposed = walk.to_along == 1 && walk.from_along != 1 && walk.from_across == 1;
  Launches launches{stream};
  launches(transposed ? fold_conv_weight_kernel<T, true> : fold_conv_weight_kernel<T, false>, tiles * p.to_taps,
           dim3(kTile, kRows), args, walk);
  return launches.error;
}

int fold(const Args& args, void* stream) {
  switch (args.problem.dtype) {
    case DType::kFloat32:
      return fold_in<float>(args, stream);
    case DType::kFloat64:
      return fold_in<double>(args, stream);
    case DType::kBFloat16:
      return fold_in<__nv_bfloat16>(args, stream);
    default:
      return fold_in<__half>(args, stream);
  }
}

}  // namespace gankernels::fold_conv_weight::cuda

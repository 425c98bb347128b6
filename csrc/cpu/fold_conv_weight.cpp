// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "fold_conv_weight.h"

#include "vec.h"

namespace gankernels::fold_conv_weight::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

// The channels of one row of a tile: `count` numbers side by side for each tap, `stride` from tap to tap.
template <class S>
struct Row {
  const S* at;
  int64_t stride, count;
};

// One tap of the result, for all channels of the row: calls store(channel, V).
template <class A, class S, class Store>
GK_INLINE void fold_tap(const Problem& p, const Row<S>& row, int y, int x, Store&& store) {
  const S* sources[4];
  int many = 0;
  const int uy = last_source(p, y), ux = last_source(p, x);
  for (int sy = uy > 0 ? uy - 1 : 0; sy <= uy && sy < p.from_taps; ++sy)
    for (int sx = ux > 0 ? ux - 1 : 0; sx <= ux && sx < p.from_taps; ++sx)
      sources[many++] = row.at + (sy * p.from_taps + sx) * row.stride;
  const A factor = A(scale(p));
  const auto all = [&](auto sum) GK_LAMBDA_INLINE {
    int64_t j = 0;
    for (; j + kLanes<A> <= row.count; j += kLanes<A>) store(j, sum.template operator()<Vector<A>>(j) * factor);
    for (; j < row.count; ++j) store(j, sum.template operator()<A>(j) * factor);
  };
  // One source in a corner, two on an edge, four elsewhere.
  if (many == 1)
    all([&]<class V>(int64_t j) GK_LAMBDA_INLINE { return load<V>(sources[0] + j); });
  else if (many == 2)
    all([&]<class V>(int64_t j) GK_LAMBDA_INLINE { return load<V>(sources[0] + j) + load<V>(sources[1] + j); });
  else
    all([&]<class V>(int64_t j) GK_LAMBDA_INLINE {
      return (load<V>(sources[0] + j) + load<V>(sources[1] + j)) + (load<V>(sources[2] + j) + load<V>(sources[3] + j));
    });
}

template <class A, class T, class S>
GK_INLINE void fold_row(const Problem& p, const Tiling& t, const Row<S>& row, T* to) {
  for (int y = 0; y < p.to_taps; ++y)
    for (int x = 0; x < p.to_taps; ++x) {
      T* tap = to + (y * p.to_taps + x) * p.to.tap;
      if (t.to_along == 1) {
        fold_tap<A>(p, row, y, x, [&](int64_t j, auto v) GK_LAMBDA_INLINE { store(tap + j, v); });
        continue;
      }
      A folded[kGathered];
      fold_tap<A>(p, row, y, x, [&](int64_t j, auto v) GK_LAMBDA_INLINE { store(folded + j, v); });
      for (int64_t j = 0; j < row.count; ++j) store(tap + j * t.to_along, folded[j]);
    }
}

// A tile whose channels are not side by side, brought into that order: [rows, taps, kGathered]. Every line of the
// source is read at once: at the strides of a large weight, two lines that are a tap apart push each other out of the
// cache.
template <class A, class T>
GK_INLINE void gather(const Problem& p, const Tiling& t, const T* from, int64_t count, int64_t rows, A* gathered) {
  const int64_t taps = p.from_taps * p.from_taps;
  const auto one = [&](int64_t j, int64_t tap, int64_t r) GK_LAMBDA_INLINE {
    gathered[(r * taps + tap) * kGathered + j] =
        load<A>(from + j * t.from_along + tap * p.from.tap + r * t.from_across);
  };
  if (p.from.tap == 1) {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t tap = 0; tap < taps; ++tap) one(j, tap, r);
    return;
  }
  constexpr int64_t kSide = 8;  // of a block that is transposed on its way, with whole vectors in and out
  for (int64_t j0 = 0; j0 < count; j0 += kSide)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
        if (j0 + kSide > count || r0 + kSide > rows || t.from_across != 1) {
          for (int64_t j = j0; j < count && j < j0 + kSide; ++j)
            for (int64_t r = r0; r < rows && r < r0 + kSide; ++r) one(j, tap, r);
          continue;
        }
        A block[kSide][kSide];
        for (int64_t j = 0; j < kSide; ++j)
          for (int64_t r = 0; r < kSide; ++r)
            block[j][r] = load<A>(from + (j0 + j) * t.from_along + tap * p.from.tap + r0 + r);
        for (int64_t r = 0; r < kSide; ++r)
          for (int64_t j = 0; j < kSide; ++j) gathered[((r0 + r) * taps + tap) * kGathered + j0 + j] = block[j][r];
      }
}

template <class T>
void fold(const Args& args, int64_t begin, int64_t end) {
  using A = typename AccumulatorOf<T>::type;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const int64_t taps = p.from_taps * p.from_taps;
  alignas(64) A gathered[kGatheredTaps * kGathered];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile % t.blocks * t.block, first_row = tile / t.blocks * t.rows;
    const int64_t count = t.along - first < t.block ? t.along - first : t.block;
    const int64_t rows = t.across - first_row < t.rows ? t.across - first_row : t.rows;
    const T* from = static_cast<const T*>(args.from) + first * t.from_along + first_row * t.from_across;
    T* to = static_cast<T*>(args.to) + first * t.to_along + first_row * t.to_across;
    if (t.from_along != 1) gather(p, t, from, count, rows, gathered);
    for (int64_t r = 0; r < rows; ++r) {
      if (t.from_along == 1)
        fold_row<A>(p, t, Row<T>{from + r * t.from_across, p.from.tap, count}, to + r * t.to_across);
      else
        fold_row<A>(p, t, Row<A>{gathered + r * taps * kGathered, kGathered, count}, to + r * t.to_across);
    }
  }
}

}  // namespace

extern const Table table = {fold<float>, fold<double>, fold<BFloat16>, fold<Float16>};

}  // namespace gankernels::fold_conv_weight::cpu::GK_ISA

// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "fold_conv_weight.h"

#include "tile.h"

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
  const int uy = last_source(p, y), ux = last_source(p, x), before = p.from_taps != p.to_taps;
  for (int sy = uy > 0 ? uy - before : 0; sy <= uy && sy < p.from_taps; ++sy)
    for (int sx = ux > 0 ? ux - before : 0; sx <= ux && sx < p.from_taps; ++sx)
      sources[many++] = row.at + (sy * p.from_taps + sx) * row.stride;
  const A factor = A(scale(p));
  const auto all = [&](auto sum) GK_LAMBDA_INLINE {
    int64_t j = 0;
    for (; j + kLanes<A> <= row.count; j += kLanes<A>) store(j, sum.template operator()<Vector<A>>(j) * factor);
    for (; j < row.count; ++j) {
      stay_scalar();
      store(j, sum.template operator()<A>(j) * factor);
    }
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

// to[q * to_stride + j] = from[j * from_stride + q], in squares that stay in registers or the first cache.
template <class A, class S, class T>
GK_INLINE void transpose(const S* from, int64_t from_stride, int64_t many_j, int64_t many_q, T* to, int64_t to_stride) {
  constexpr int64_t kSide = 8;
  for (int64_t j = 0; j < many_j; j += kSide)
    for (int64_t q = 0; q < many_q; q += kSide) {
      if (j + kSide > many_j || q + kSide > many_q) {
        for (int64_t jj = j; jj < many_j && jj < j + kSide; ++jj)
          for (int64_t qq = q; qq < many_q && qq < q + kSide; ++qq) {
            stay_scalar();
            store(to + qq * to_stride + jj, load<A>(from + jj * from_stride + qq));
          }
        continue;
      }
      A square[kSide][kSide];
      for (int64_t jj = 0; jj < kSide; ++jj)
        for (int64_t qq = 0; qq < kSide; ++qq) square[qq][jj] = load<A>(from + (j + jj) * from_stride + q + qq);
      for (int64_t qq = 0; qq < kSide; ++qq)
        for (int64_t jj = 0; jj < kSide; ++jj) store(to + (q + qq) * to_stride + j + jj, square[qq][jj]);
    }
}

// A tile whose channels are not side by side, brought into that order: [row, tap, kBlock].
template <class A, class T>
GK_INLINE void gather(const Problem& p, const Tiling& t, const T* from, int64_t count, int64_t rows, A* gathered) {
  const int64_t taps = int64_t(p.from_taps) * p.from_taps;
  if (p.from.tap == 1 && t.from_across == taps)
    transpose<A>(from, t.from_along, count, rows * taps, gathered, kBlock);
  else if (p.from.tap == 1)
    for (int64_t r = 0; r < rows; ++r)
      transpose<A>(from + r * t.from_across, t.from_along, count, taps, gathered + r * taps * kBlock, kBlock);
  else  // the rows are side by side
    for (int64_t tap = 0; tap < taps; ++tap)
      transpose<A>(from + tap * p.from.tap, t.from_along, count, rows, gathered + tap * kBlock, taps * kBlock);
}

// All taps of one row's channels. `folded` holds them on their way to a result in which a channel's taps are together.
template <class A, class T, class S>
GK_INLINE void fold_row(const Problem& p, const Tiling& t, const Row<S>& row, T* to, bool streamed, A* folded) {
  const bool direct = t.to_along == 1;
  for (int y = 0; y < p.to_taps; ++y)
    for (int x = 0; x < p.to_taps; ++x) {
      const int64_t tap = int64_t(y) * p.to_taps + x;
      if (!direct) {
        fold_tap<A>(p, row, y, x, [&](int64_t j, auto v) GK_LAMBDA_INLINE { store(folded + tap * kBlock + j, v); });
      } else if (T* out = to + tap * p.to.tap; streamed && streamable(out, row.count)) {
        fold_tap<A>(p, row, y, x, [&](int64_t j, auto v) GK_LAMBDA_INLINE { stream(out + j, v); });
      } else {
        fold_tap<A>(p, row, y, x, [&](int64_t j, auto v) GK_LAMBDA_INLINE { store(out + j, v); });
      }
    }
  if (!direct) transpose<A>(folded, kBlock, int64_t(p.to_taps) * p.to_taps, row.count, to, t.to_along);
}

template <class T>
void fold(const Args& args, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  // A result that no cache holds until it is read.
  constexpr int64_t kStreamed = 16 << 20;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const int64_t taps = int64_t(p.from_taps) * p.from_taps, to_taps = int64_t(p.to_taps) * p.to_taps;
  const bool streamed = t.along * t.across * to_taps * int64_t(sizeof(T)) >= kStreamed;
  Scratch<A> scratch(1, t.direct ? 0 : kGathered + to_taps * kBlock);
  A *const gathered = scratch[0], *const folded = gathered + kGathered;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile % t.blocks * t.block, first_row = tile / t.blocks * t.rows;
    const int64_t count = t.along - first < t.block ? t.along - first : t.block;
    const int64_t rows = t.across - first_row < t.rows ? t.across - first_row : t.rows;
    const T* from = static_cast<const T*>(args.from) + first * t.from_along + first_row * t.from_across;
    T* to = static_cast<T*>(args.to) + first * t.to_along + first_row * t.to_across;
    if (t.from_along != 1) gather(p, t, from, count, rows, gathered);
    for (int64_t r = 0; r < rows; ++r, to += t.to_across) {
      if (t.from_along == 1)
        fold_row<A>(p, t, Row<T>{from + r * t.from_across, p.from.tap, count}, to, streamed, folded);
      else
        fold_row<A>(p, t, Row<A>{gathered + r * taps * kBlock, kBlock, count}, to, streamed, folded);
    }
  }
  if (streamed) end_of_stream();
}

}  // namespace

extern const Table table = {fold<float>, fold<double>, fold<BFloat16>, fold<Float16>};

}  // namespace gankernels::fold_conv_weight::cpu::GK_ISA

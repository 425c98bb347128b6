// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "bias_act.h"

#include "math.h"

namespace gankernels::bias_act::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

template <class T>
using AccumulatorT = typename AccumulatorOf<T>::type;

// Numbers that are added one after the other; the sums of such runs are then added up. The rounding error of a sum
// grows with the length of its chains.
constexpr int64_t kRun = 16;

// Vectors of a plane that are under way together, each with its sum, and rows whose sums stay in registers: fewer loads
// and stores of sums, but more streams from memory. Smooth activations have enough to do with one.
template <Activation kAct>
constexpr int kUnroll = is_piecewise_linear(kAct) ? 4 : 1;
template <class T, Activation kAct>
constexpr int64_t kStrip = sizeof(T) == 2 && is_piecewise_linear(kAct) ? 4 : 1;

template <class A>
constexpr int64_t kWidest = kMostColumns + 64 * kLanes<A>;

// What a number's channel brings along. Null stands for zeros.
template <class A>
struct PerChannel {
  const A *bias, *ddbias;

  PerChannel(const void* bias, const void* ddbias)
      : bias(static_cast<const A*>(bias)), ddbias(static_cast<const A*>(ddbias)) {}
  GK_INLINE A bias_at(int64_t c) const { return bias ? bias[c] : A(0); }
  GK_INLINE A ddbias_at(int64_t c) const { return ddbias ? ddbias[c] : A(0); }
};

// One piece of one plane. `body` and `odd`, here and below, take (offset, bias, ddbias), do their work on a vector or
// on a single number of an odd end, and return what is summed for each channel.
template <class T, bool kSums, int kSteps, class Body, class Odd>
GK_INLINE void walk_piece(const Problem& p, const Tiling& t, const PerChannel<AccumulatorT<T>>& of,
                          AccumulatorT<T>* partial, int64_t index, Body&& body, Odd&& odd) {
  using A = AccumulatorT<T>;
  using W = Vector<A>;
  constexpr int64_t kLane = kLanes<A>, kStep = kSteps * kLane;
  const int64_t plane = index / t.pieces, piece = index % t.pieces, c = plane % p.channels, n = plane / p.channels;
  const int64_t first = piece * t.span, offset = plane * p.inner + first;
  const int64_t length = p.inner - first < t.span ? p.inner - first : t.span;
  const int64_t vectors = length / kLane * kLane, steps = length / kStep * kStep;
  const A bias = of.bias_at(c), ddbias = of.ddbias_at(c);
  const W biases = splat<W>(bias), ddbiases = splat<W>(ddbias);
  W total = {};
  int64_t j = 0;
  while (j < steps) {
    W sums[kSteps] = {};
    const int64_t end = j + kRun * kStep < steps ? j + kRun * kStep : steps;
    for (; j < end; j += kStep)
      for (int k = 0; k < kSteps; ++k) sums[k] += body(offset + j + k * kLane, biases, ddbiases);
    for (int k = 0; k < kSteps; ++k) total += sums[k];
  }
  if constexpr (kSteps > 1)
    for (; j < vectors; j += kLane) total += body(offset + j, biases, ddbiases);
  A sum = 0;
  for (; j < length; ++j) sum += odd(offset + j, bias, ddbias);
  if constexpr (kSums) {
    for (int64_t k = 0; k < kLane; ++k) sum += total[k];
    partial[(n * t.pieces + piece) * p.channels + c] = sum;
  }
}

// The columns of a tile of short planes. Where the tile is one piece of memory, rows are joined into wider ones, so
// that every width is whole vectors, or so large that its odd end does not matter.
struct Columns {
  int64_t width, rows, stride, remainder;  // numbers of a row; rows; from row to row; numbers after the last

  template <class A>
  static GK_INLINE Columns of(const Tiling& t, int64_t columns, int64_t rows) {
    if (t.blocks > 1) return {columns, rows, t.width, 0};
    const int64_t size = columns * rows;
    int64_t width = columns;
    while (width % kLanes<A> != 0 && width < 32 * kLanes<A> && width * 4 <= size) width += columns;
    if (width % kLanes<A> != 0 && columns > kLanes<A>) width = columns;
    while (width < 8 * kLanes<A> && width * 4 <= size) width *= 2;
    return {width, size / width, width, size % width};
  }
};

template <class T, bool kSums, int64_t kRows, class Body, class Odd>
GK_INLINE void walk_rows(const Problem& p, const Tiling& t, const PerChannel<AccumulatorT<T>>& of,
                         AccumulatorT<T>* partial, int64_t index, Body&& body, Odd&& odd) {
  using A = AccumulatorT<T>;
  using W = Vector<A>;
  constexpr int64_t kLane = kLanes<A>;
  const int64_t slot = index / t.blocks, first_row = slot * t.rows, first = index % t.blocks * t.block;
  const int64_t tile_rows = p.outer - first_row < t.rows ? p.outer - first_row : t.rows;
  const int64_t tile_columns = t.width - first < t.block ? t.width - first : t.block;
  const Columns columns = Columns::of<A>(t, tile_columns, tile_rows);
  const int64_t c0 = first / p.inner, channels = tile_columns / p.inner;
  const int64_t offset = first_row * t.width + first, vectors = columns.width / kLane * kLane;

  alignas(64) A bias[kWidest<A>], ddbias[kWidest<A>], run[kWidest<A>], total[kWidest<A>];
  for (int64_t j = 0, c = 0, l = 0; j < columns.width; ++j) {
    bias[j] = of.bias_at(c0 + c);
    ddbias[j] = of.ddbias_at(c0 + c);
    if constexpr (kSums) run[j] = total[j] = 0;
    if (++l == p.inner) l = 0, c = c + 1 == channels ? 0 : c + 1;
  }
  const auto number = [&](int64_t e, int64_t j) GK_LAMBDA_INLINE {
    const A sum = odd(e, bias[j], ddbias[j]);
    if constexpr (kSums) run[j] += sum;
  };
  const auto rows_at = [&]<int64_t kCount>(int64_t row) GK_LAMBDA_INLINE {
    const int64_t e = offset + row * columns.stride;
    for (int64_t j = 0; j < vectors; j += kLane) {
      W sum = {};
      for (int64_t r = 0; r < kCount; ++r)
        sum += body(e + r * columns.stride + j, load<W>(bias + j), load<W>(ddbias + j));
      if constexpr (kSums) add(run + j, sum);
    }
    for (int64_t j = vectors; j < columns.width; ++j)
      for (int64_t r = 0; r < kCount; ++r) number(e + r * columns.stride + j, j);
  };
  int64_t row = 0;
  while (row < columns.rows) {
    const int64_t end = row + kRun < columns.rows ? row + kRun : columns.rows;
    if constexpr (kRows > 1)
      for (; row + kRows <= end; row += kRows) rows_at.template operator()<kRows>(row);
    for (; row < end; ++row) rows_at.template operator()<1>(row);
    if constexpr (kSums)
      for (int64_t j = 0; j < columns.width; ++j) total[j] += run[j], run[j] = 0;
  }
  for (int64_t j = 0; j < columns.remainder; ++j) number(offset + columns.rows * columns.stride + j, j);
  if constexpr (kSums) {
    A* sums = partial + slot * p.channels + c0;
    for (int64_t c = 0; c < channels; ++c) sums[c] = 0;
    for (int64_t j = 0, c = 0, l = 0; j < columns.width; ++j) {
      sums[c] += total[j] + run[j];
      if (++l == p.inner) l = 0, c = c + 1 == channels ? 0 : c + 1;
    }
  }
}

template <class T, Activation kAct, bool kSums, class Body>
GK_INLINE void walk(const Problem& p, const PerChannel<AccumulatorT<T>>& of, void* partial, int64_t begin, int64_t end,
                    Body&& body) {
  using A = AccumulatorT<T>;
  const Tiling t = tiling(p);
  A* sums = static_cast<A*>(partial);
  // Not inlined: odd ends are rare, and their code is as large as that of the vectors.
  const auto odd = [&](int64_t e, A bias, A ddbias) __attribute__((noinline)) { return body(e, bias, ddbias); };
  for (int64_t i = begin; i < end; ++i) {
    if (t.planes)
      walk_piece<T, kSums, kUnroll<kAct>>(p, t, of, sums, i, body, odd);
    else
      walk_rows<T, kSums, kSums ? kStrip<T, kAct> : 1>(p, t, of, sums, i, body, odd);
  }
}

template <class T, Activation kAct>
void forward(const Forward& args, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Constants<A> k(args.problem);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  walk<T, kAct, false>(args.problem, {args.bias, nullptr}, nullptr, begin, end,
                       [&]<class V>(int64_t e, V bias, V) GK_LAMBDA_INLINE {
                         store(y + e, bias_act::forward<kAct, Math>(load<V>(x + e) + bias, k));
                         return V{};
                       });
}

// z, or anything where nothing depends on it.
template <Activation kAct, class V, class T>
GK_INLINE V z_at(const T* x, int64_t e, V bias) {
  if (kAct == Activation::kNone && !x) return V{};
  return load<V>(x + e) + bias;
}

template <class T, Activation kAct>
void backward(const Backward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Constants<A> k(args.problem);
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  T* dx = static_cast<T*>(args.dx);
  const auto body = [&]<class V>(int64_t e, V bias, V) GK_LAMBDA_INLINE {
    const V dz = bias_act::backward<kAct, Math>(z_at<kAct>(x, e, bias), load<V>(dy + e), k);
    store(dx + e, dz);
    return dz;
  };
  const PerChannel<A> of(args.bias, nullptr);
  if constexpr (is_piecewise_linear(kAct))
    if (!partial) return walk<T, kAct, false>(args.problem, of, nullptr, begin, end, body);
  walk<T, kAct, true>(args.problem, of, partial, begin, end, body);
}

template <class T, Activation kAct>
void backward_backward(const BackwardBackward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Constants<A> k(args.problem);
  const T *ddx = static_cast<const T*>(args.ddx), *dy = static_cast<const T*>(args.dy),
          *x = static_cast<const T*>(args.x);
  T *ddy = static_cast<T*>(args.ddy), *dx = static_cast<T*>(args.dx);
  const PerChannel<A> of(args.bias, args.ddbias);
  const auto body = [&]<class V>(int64_t e, V bias, V ddbias) GK_LAMBDA_INLINE {
    const V z = z_at<kAct>(x, e, bias), a = load<V>(ddx + e) + ddbias;
    store(ddy + e, bias_act::second_ddy<kAct, Math>(z, a, k));
    if constexpr (is_piecewise_linear(kAct)) {
      return V{};
    } else {
      const V dz = bias_act::second_dz<kAct, Math>(z, a, load<V>(dy + e), k);
      store(dx + e, dz);
      return dz;
    }
  };
  walk<T, kAct, !is_piecewise_linear(kAct)>(args.problem, of, partial, begin, end, body);
}

template <class T, Activation kAct>
constexpr Passes kPasses = {forward<T, kAct>, backward<T, kAct>, backward_backward<T, kAct>};

#define GK_ROW(T)                                                                                           \
  {kPasses<T, Activation::kNone>,     kPasses<T, Activation::kRelu>,    kPasses<T, Activation::kLeakyRelu>, \
   kPasses<T, Activation::kTanh>,     kPasses<T, Activation::kSigmoid>, kPasses<T, Activation::kSilu>,      \
   kPasses<T, Activation::kSoftplus>, kPasses<T, Activation::kGelu>}

}  // namespace

extern const Table table = {GK_ROW(float), GK_ROW(double), GK_ROW(BFloat16), GK_ROW(Float16)};

}  // namespace gankernels::bias_act::cpu::GK_ISA

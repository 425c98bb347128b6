// What the passes of every order share. Included by conditional_batch_norm*.cpp, which are built once per instruction
// set.
#pragma once

#include <cmath>

#include "conditional_batch_norm.h"
#include "tile.h"

namespace gankernels::conditional_batch_norm::cpu::GK_ISA {

using namespace gankernels::cpu::GK_ISA;

// ---- The passes, as conditional_batch_norm.h describes them: one file an order ----

template <class T>
void statistics(const Forward& args, void* partial, int64_t begin, int64_t end);
template <class T, class Out>
void merge_statistics(const Forward& args, const void* partial, int64_t c_begin, int64_t c_end);
template <class T, Activation kAct>
void forward(const Forward& args, int64_t begin, int64_t end);

template <class T, Activation kAct>
void backward_sums(const Backward& args, void* partial, int64_t begin, int64_t end);
template <class T>
void backward_terms(const Backward& args, const void* partial, void* terms, int64_t c_begin, int64_t c_end);
template <class T, Activation kAct>
void backward(const Backward& args, const void* terms, int64_t begin, int64_t end);

template <class T, Activation kAct>
void backward_backward_sums(const BackwardBackward& args, void* partial, int64_t begin, int64_t end);
template <class T>
void backward_backward_terms(const BackwardBackward& args, const void* partial, void* terms, int64_t c_begin,
                             int64_t c_end);
template <class T, Activation kAct>
void backward_backward(const BackwardBackward& args, const void* terms, int64_t begin, int64_t end);

// GK_FOR_EACH_TYPE(GK_X): GK_X(T) for every element type.
#define GK_FOR_EACH_TYPE(GK_X) GK_X(float) GK_X(double) GK_X(BFloat16) GK_X(Float16)

// ---- Tiles ----

// Channels that a middle step takes together, so that its loops over samples vectorise.
inline constexpr int64_t kBlock = 64;

// Rows that the sums of the backwards take in one strip (sweep_sums).
template <class T>
inline constexpr int64_t kStrip = sizeof(T) == 2 ? 4 : 1;

GK_INLINE Tile tile_at(const Problem& p, const Tiling& t, int64_t index) {
  if (p.layout == Layout::kContiguous) {
    const int64_t c = index / p.n, n = index % p.n;
    return {(n * p.c + c) * p.l, n, c, 1, p.l, n};
  }
  const int64_t splits = t.slots / p.n, n = index / splits, row = index % splits * t.rows_of_tile;
  return {(n * p.l + row) * p.c, n, 0, p.c, rows_of_slot(p, t, index), index};
}

GK_INLINE int64_t widest(const Problem& p) {
  const int64_t channels = p.layout == Layout::kContiguous ? 1 : p.c;
  return channels + 64 * kLanes<float>;
}

// Whether a result is so large that it would have left the caches before anybody reads it.
template <class T>
GK_INLINE bool is_large(const Problem& p) {
  return p.batch * p.n * p.c * p.l * int64_t(sizeof(T)) >= kLargeBytes;
}

// ---- Per-column values ----

// Not rounded: the second order has its cube, and so would have three times its error.
template <class A>
GK_INLINE double rstd_of(const void* var, int64_t c, double eps) {
  return 1 / std::sqrt(static_cast<const A*>(var)[c] + eps);
}

// The same of every channel that the tiles [begin, end) have.
template <class A>
class Rstds {
 public:
  template <class Args>
  GK_ONCE_PER_TILE Rstds(const Args& args, int64_t begin, int64_t end)
      : first_(end > begin && is_planar(args) ? begin / args.problem.n : 0),
        count_(end <= begin      ? 0
               : is_planar(args) ? (end - 1) / args.problem.n + 1 - first_
                                 : args.problem.c),
        values_(1, count_) {
    for (int64_t k = 0; k < count_; ++k) values_[0][k] = rstd_of<A>(args.var, first_ + k, args.problem.eps);
  }
  GK_INLINE double operator[](int64_t c) { return values_[0][c - first_]; }

 private:
  template <class Args>
  static GK_INLINE bool is_planar(const Args& args) {
    return args.problem.layout == Layout::kContiguous;
  }

  int64_t first_, count_;
  Scratch<double> values_;
};

// Gives every column what dst has for its channel.
template <class T, class A>
GK_ONCE_PER_TILE void repeat(const Tile& tile, const Columns& columns, A* dst) {
  for (int64_t k = 0; k < tile.channels; ++k) dst[k] = plain(dst[k]);
  for (int64_t j = tile.channels; j < columns.width; ++j) dst[j] = dst[j - tile.channels];
  columns.arrange<T>(dst);
}

// Fills dst with value(channel) for every column.
template <class T, class A, class Value>
GK_INLINE void expand(const Tile& tile, const Columns& columns, A* dst, Value&& value) {
  if (tile.channels == 1) {  // a plane: all columns are one channel's, in any order
    const A of_all = plain(value(tile.first_channel));
    int64_t j = 0;
    for (; j + kLanes<A> <= columns.width; j += kLanes<A>) store(dst + j, splat<Vector<A>>(of_all));
    for (; j < columns.width; ++j) {
      stay_scalar();
      dst[j] = of_all;
    }
    return;
  }
  for (int64_t k = 0; k < tile.channels; ++k) dst[k] = value(tile.first_channel + k);
  repeat<T>(tile, columns, dst);
}

// Adds up the columns of each channel into the partial results [slots, C]; in double, since where a tile has one
// channel all its columns are one chain.
template <class T, class A>
GK_ONCE_PER_TILE void fold(const Problem& p, const Tile& tile, const Columns& columns, A* column_sums, A* partial) {
  A* dst = partial + tile.slot * p.c + tile.first_channel;
  columns.restore<T>(column_sums);
  if (columns.width == tile.channels) {
    std::memcpy(dst, column_sums, tile.channels * sizeof(A));
    return;
  }
  for (int64_t k = 0; k < tile.channels; ++k) {
    double sum = 0;
    for (int64_t j = k; j < columns.width; j += tile.channels) sum += column_sums[j];
    dst[k] = A(sum);
  }
}

// An affine function of x is slope * (x - mean) + constant. For 16-bit x it is taken as slope * x + (constant - slope *
// mean), an operation and an operand less: such an x is itself rounded to 2^-8 or 2^-11 of the mean, and fp32 keeps the
// difference to 2^-24 of it, as eager PyTorch does. For wider x the difference must be taken first.
template <class T>
inline constexpr bool kFromZero = sizeof(T) == 2;

template <class T, class A>
GK_INLINE A constant_of(A constant, A slope, A mean) {
  return kFromZero<T> ? constant - slope * mean : constant;
}
template <class T, class V>
GK_INLINE V from_origin(V x, V mean) {
  return kFromZero<T> ? x : x - mean;
}

// What z needs of each column, in the forward and in every backward alike, so that all find the same sign.
template <class T>
struct Affine {
  using A = AccumulatorT<T>;
  A *mean, *scale, *bias;
  Rstds<A> rstd;
  int64_t sample = -1, channel = -1, width = -1;  // of what the columns hold

  template <class Args>
  GK_ONCE_PER_TILE void fill(const Args& args, const Tile& tile, const Columns& columns) {
    if (sample == tile.sample && channel == tile.first_channel && width == columns.width) return;
    sample = tile.sample, channel = tile.first_channel, width = columns.width;
    const int64_t row = args.problem.row_of(tile.sample) * args.problem.c;
    const A *gains = static_cast<const A*>(args.gain) + row, *biases = static_cast<const A*>(args.bias) + row,
            *means = static_cast<const A*>(args.mean);
    const auto scale_of = [&](int64_t c) GK_LAMBDA_INLINE { return A(gains[c] * rstd[c]); };
    expand<T>(tile, columns, mean, [&](int64_t c) { return means[c]; });
    expand<T>(tile, columns, scale, scale_of);
    expand<T>(tile, columns, bias, [&](int64_t c) { return constant_of<T>(biases[c], scale_of(c), means[c]); });
  }

  // z = (x - mean) * scale + bias, of columns[0..3) = mean, scale, bias.
  template <class V>
  static GK_INLINE V z(V x, const V* columns) {
    return from_origin<T>(x, columns[0]) * columns[1] + columns[2];
  }
};

// Calls body(rc, k, sums) for the rows of gain that the batch has, and channels c0 + k of a block: rc is the place in
// [rows, C], and the sums are those over the slots of the row's samples.
template <int kSums, class A, class Body>
GK_INLINE void for_each_row(const Problem& p, const Tiling& t, const A* partial, int64_t c0, int64_t width,
                            Body&& body) {
  const int64_t splits = p.n > 0 ? t.slots / p.n : 0, stride = t.slots * p.c;
  for (int64_t begin = 0, end; begin < p.n; begin = end) {
    for (end = begin + 1; end < p.n && !p.begins_row(end);) ++end;
    const int64_t row = p.row_of(p.sample_at(begin));
    for (int64_t k = 0; k < width; ++k) {
      double sums[kSums] = {};
      for (int64_t i = begin; i < end; ++i) {
        const A* slots = partial + p.sample_at(i) * splits * p.c + c0 + k;
        for (int64_t s = 0; s < splits; ++s)
          for (int q = 0; q < kSums; ++q) sums[q] += slots[q * stride + s * p.c];
      }
      body(row * p.c + c0 + k, k, sums);
    }
  }
}

// The sums of each row's slots: [rows, C, kSums].
template <class T, int kSums>
void fold_sums(const Problem& p, const void* partial, void* sums, int64_t c_begin, int64_t c_end) {
  using A = AccumulatorT<T>;
  const auto write = [&](int64_t rc, int64_t, const double* s) GK_LAMBDA_INLINE {
    for (int q = 0; q < kSums; ++q) static_cast<A*>(sums)[rc * kSums + q] = A(s[q]);
  };
  for_each_row<kSums>(p, tiling(p), static_cast<const A*>(partial), c_begin, c_end - c_begin, write);
}

}  // namespace gankernels::conditional_batch_norm::cpu::GK_ISA

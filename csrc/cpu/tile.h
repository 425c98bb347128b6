// How the CPU kernels walk over pictures. A tile is a run of pixels of one sample, small enough for the second-level
// cache: some rows of [L, C] in channels_last, one plane of L rows with one channel in contiguous. One kernel serves
// both: it sees `rows` of `channels` numbers, one behind the other.
#pragma once

#include "stream.h"

namespace gankernels::cpu::GK_ISA {

struct Tile {
  int64_t offset;         // of its first number
  int64_t sample;         // n
  int64_t first_channel;  // c
  int64_t channels, rows;
  int64_t slot;  // where its partial results go, of slots() for each channel
};

// Bytes of one tensor that fill a last-level cache, as its cores share it.
inline constexpr int64_t kLargeBytes = 16 << 20;

// Numbers that one step takes.
template <class T>
inline constexpr int64_t kStep = kRegisters<T> * kLanes<AccumulatorT<T>>;

// The columns over which a tile is swept. A tile with few channels is cut into wider rows, each some pixels long, so
// that every width is whole steps, or so large that its odd end does not matter.
struct Columns {
  int64_t width;      // numbers in a row of the sweep: a multiple of `channels`
  int64_t rows;       // whole rows
  int64_t remainder;  // numbers in the row that the tile's end cuts off
  int64_t stepped;    // columns that whole steps cover

  template <class T>
  static GK_ONCE_PER_TILE Columns of(const Tile& tile) {
    constexpr int64_t step = kStep<T>;
    const int64_t total = tile.channels * tile.rows;
    int64_t width = tile.channels;
    // The least common multiple of channels and step, where that is not too wide.
    while (width % step != 0 && width < 32 * step && width * 4 <= total) width += tile.channels;
    if (width % step != 0 && tile.channels > step) width = tile.channels;
    // Some steps side by side, so that no sum waits for the one before.
    while (width < 8 * kLanes<AccumulatorT<T>> && width * 4 <= total) width *= 2;
    return {width, total / width, total % width, width / step * step};
  }

  // Where an array of per-column values holds column j: step for step in the order of load_step's registers.
  template <class T>
  GK_INLINE int64_t place(int64_t j) const {
    if constexpr (kRegisters<T> == 1) return j;
    if (j >= stepped) return j;
    const int64_t within = j % kStep<T>;
    return j - within + within % 2 * (kStep<T> / 2) + within / 2;
  }

  // Brings values that stand column by column into that order, and back.
  template <class T, class A>
  GK_INLINE void arrange(A* values) const {
    if constexpr (kRegisters<T> > 1)
      in_steps<T>(values, [](const A* from, A* to, int64_t half, int64_t i) GK_LAMBDA_INLINE {
        to[i] = from[2 * i];
        to[half + i] = from[2 * i + 1];
      });
  }
  template <class T, class A>
  GK_INLINE void restore(A* values) const {
    if constexpr (kRegisters<T> > 1)
      in_steps<T>(values, [](const A* from, A* to, int64_t half, int64_t i) GK_LAMBDA_INLINE {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[half + i];
      });
  }

 private:
  template <class T, class A, class Move>
  GK_ONCE_PER_TILE void in_steps(A* values, Move&& move) const {
    constexpr int64_t step = kStep<T>;
    for (int64_t j = 0; j < stepped; j += step) {
      A before[step], after[step];
      std::memcpy(before, values + j, sizeof before);
      for (int64_t i = 0; i < step / 2; ++i) move(before, after, step / 2, i);
      std::memcpy(values + j, after, sizeof after);
    }
  }
};

// One step of a sweep: kIn tensors at e and kColumn per-column values at j, kRegs registers of each.
template <class T, class V, int kRegs, int kIn, int kColumn>
struct Step {
  V in[kRegs][kIn], column[kRegs][kColumn];

  GK_INLINE Step(const T* const (&tensors)[kIn], int64_t e, const AccumulatorT<T>* const (&columns)[kColumn],
                 int64_t j) {
    constexpr int64_t lanes = sizeof(V) / sizeof(AccumulatorT<T>);
    for (int i = 0; i < kIn; ++i) {
      V registers[kRegs];
      if constexpr (kRegs > 1) {
        load_step(tensors[i] + e, registers);
      } else {
        registers[0] = load<V>(tensors[i] + e);
      }
      for (int r = 0; r < kRegs; ++r) in[r][i] = registers[r];
    }
    for (int r = 0; r < kRegs; ++r)
      for (int k = 0; k < kColumn; ++k) column[r][k] = load<V>(columns[k] + j + r * lanes);
  }
};

// out = body(in, column) everywhere, in the order of memory: body(const V* in, const V* column, V* out), where V is a
// vector, or a number at odd ends. One row at a time: several side by side would save loads of per-column values, but
// took twice as long, since the processor prefetches one long stream better than many short ones. With `past_cache` the
// results are stored past the caches where they are aligned; end_of_stream() must follow.
template <class T, int kIn, int kColumn, int kOut, class Body>
GK_INLINE void sweep(const Columns& columns, const T* const (&in)[kIn], const AccumulatorT<T>* const (&column)[kColumn],
                     T* const (&out)[kOut], bool past_cache, Body&& body) {
  using A = AccumulatorT<T>;
  const int64_t width = columns.width;
  const auto step = [&]<class V, int kRegs, bool kStream>(int64_t e, int64_t j) GK_LAMBDA_INLINE {
    const Step<T, V, kRegs, kIn, kColumn> at(in, e, column, j);
    V results[kRegs][kOut];
    for (int r = 0; r < kRegs; ++r) body(at.in[r], at.column[r], results[r]);
    for (int k = 0; k < kOut; ++k) {
      V registers[kRegs];
      for (int r = 0; r < kRegs; ++r) registers[r] = results[r][k];
      if constexpr (kStream) {
        stream_step(out[k] + e, registers);
      } else if constexpr (kRegs > 1) {
        store_step(out[k] + e, registers);
      } else {
        store(out[k] + e, registers[0]);
      }
    }
  };
  const auto rows = [&]<bool kStream>() GK_LAMBDA_INLINE {
    for (int64_t row = 0; row < columns.rows; ++row) {
      const int64_t e = row * width;
      int64_t j = 0;
      for (; j < columns.stepped; j += kStep<T>) step.template operator()<Vector<A>, kRegisters<T>, kStream>(e + j, j);
      for (; j + kLanes<A> <= width; j += kLanes<A>) step.template operator()<Vector<A>, 1, false>(e + j, j);
      for (; j < width; ++j) {
        stay_scalar();
        step.template operator()<A, 1, false>(e + j, j);
      }
    }
  };
  for (const T* result : out) past_cache = past_cache && streamable_steps(result, width);
  if (past_cache) {
    rows.template operator()<true>();
  } else {
    rows.template operator()<false>();
  }
  for (int64_t j = 0; j < columns.remainder; ++j) {
    stay_scalar();
    step.template operator()<A, 1, false>(columns.rows * width + j, columns.template place<T>(j));
  }
}

template <class A>
GK_INLINE void clear(A* columns, int64_t width) {
  for (int64_t j = 0; j < width; ++j) columns[j] = 0;
}

template <class A>
GK_INLINE void add_columns(A* to, const A* from, int64_t width) {
  int64_t j = 0;
  for (; j + kLanes<A> <= width; j += kLanes<A>) add(to + j, load<Vector<A>>(from + j));
  for (; j < width; ++j) {
    stay_scalar();
    to[j] += from[j];
  }
}

// Rows whose numbers are added one after the other; the sums of such runs are then added up. The rounding error of a
// sum grows with the length of its chains, and a tile's hundreds of rows would make them long. 16-bit operands are
// rounded so much that longer chains do no harm.
template <class T>
inline constexpr int64_t kRunRows = sizeof(T) == 2 ? 16 : 8;

// How far ahead a strip of rows asks for its operands: the processor does not foresee its jumps from row to row.
inline constexpr int64_t kPrefetchRows = 8;

// A sweep for sums over the rows of each column: body(const V* in, const V* column, V* sums) adds to sums[0..kSums),
// which are registers; total[0..kSums) has them at its end, and run[0..kSums) is memory that it needs. Each column
// takes kStrip rows in one go: fewer loads and stores of sums, but more streams from memory, so that 16-bit numbers
// gain and a second fp32 operand loses (both were measured).
template <class T, int64_t kStrip, int kIn, int kColumn, int kSums, class Body>
GK_INLINE void sweep_sums(const Columns& columns, const T* const (&in)[kIn],
                          const AccumulatorT<T>* const (&column)[kColumn], AccumulatorT<T>* const (&run)[kSums],
                          AccumulatorT<T>* const (&total)[kSums], Body&& body) {
  using A = AccumulatorT<T>;
  const int64_t width = columns.width;
  const auto strip = [&]<class V, int kRegs, int64_t kRows>(int64_t first, int64_t j) GK_LAMBDA_INLINE {
    constexpr int64_t lanes = sizeof(V) / sizeof(A);
    V sums[kRegs][kSums] = {};
    for (int64_t row = 0; row < kRows; ++row) {
      const int64_t e = first + row * width;
      if constexpr (kStrip > 1)
        for (const T* x : in) __builtin_prefetch(x + e + kPrefetchRows * width);
      const Step<T, V, kRegs, kIn, kColumn> at(in, e, column, j);
      for (int r = 0; r < kRegs; ++r) body(at.in[r], at.column[r], sums[r]);
    }
    for (int r = 0; r < kRegs; ++r)
      for (int k = 0; k < kSums; ++k) add(run[k] + j + r * lanes, sums[r][k]);
  };
  const auto rows_at = [&]<int64_t kRows>(int64_t row) GK_LAMBDA_INLINE {
    const int64_t e = row * width;
    int64_t j = 0;
    for (; j < columns.stepped; j += kStep<T>) strip.template operator()<Vector<A>, kRegisters<T>, kRows>(e + j, j);
    for (; j + kLanes<A> <= width; j += kLanes<A>) strip.template operator()<Vector<A>, 1, kRows>(e + j, j);
    for (; j < width; ++j) {
      stay_scalar();
      strip.template operator()<A, 1, kRows>(e + j, j);
    }
  };
  for (A* sum : total) clear(sum, width);
  int64_t row = 0;
  do {
    for (A* sum : run) clear(sum, width);
    const int64_t end = row + kRunRows<T> < columns.rows ? row + kRunRows<T> : columns.rows;
    for (; row + kStrip <= end; row += kStrip) rows_at.template operator()<kStrip>(row);
    for (; row < end; ++row) rows_at.template operator()<1>(row);
    if (row == columns.rows)
      for (int64_t j = 0; j < columns.remainder; ++j) {
        stay_scalar();
        strip.template operator()<A, 1, 1>(row * width + j, columns.template place<T>(j));
      }
    for (int k = 0; k < kSums; ++k) add_columns(total[k], run[k], width);
  } while (row < columns.rows);
}

// Memory for per-column values, one array behind the other.
template <class A>
class Scratch {
 public:
  Scratch(int64_t arrays, int64_t width)
      : width_(width), data_(static_cast<A*>(std::malloc(arrays * width * sizeof(A)))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* operator[](int64_t array) { return data_ + array * width_; }

 private:
  int64_t width_;
  A* data_;
};

}  // namespace gankernels::cpu::GK_ISA

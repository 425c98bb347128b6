// How the CPU kernels walk over pictures. A tile is a run of pixels of one sample, small enough for the second-level
// cache: some rows of [L, C] in channels_last, one plane of L rows with one channel in contiguous. One kernel serves
// both: it sees `rows` of `channels` numbers, one behind the other.
#pragma once

#include "vec.h"

namespace gankernels::cpu::GK_ISA {

struct Tile {
  int64_t offset;         // of its first number
  int64_t sample;         // n
  int64_t first_channel;  // c
  int64_t channels, rows;
  int64_t slot;  // where its partial results go, of slots() for each channel
};

// The columns over which a tile is swept. A tile with few channels is cut into wider rows, each some pixels long, so
// that every width is whole vectors, or so large that its odd end does not matter.
struct Columns {
  int64_t width;      // numbers in a row of the sweep: a multiple of `channels`
  int64_t rows;       // whole rows
  int64_t remainder;  // numbers in the row that the tile's end cuts off

  template <class A>
  static GK_INLINE Columns of(const Tile& tile) {
    const int64_t total = tile.channels * tile.rows;
    int64_t width = tile.channels;
    // The least common multiple of channels and lanes, where that is not too wide.
    while (width % kLanes<A> != 0 && width < 32 * kLanes<A> && width * 4 <= total) width += tile.channels;
    if (width % kLanes<A> != 0 && tile.channels > kLanes<A>) width = tile.channels;
    // Some vectors side by side, so that no sum waits for the one before.
    while (width < 8 * kLanes<A> && width * 4 <= total) width *= 2;
    return {width, total / width, total % width};
  }
};

// Calls body<V>(offset, column) for every V of the tile, in the order of memory: V is a vector, or a number at odd
// ends. One row at a time: several rows side by side would save loads of per-column values, but took twice as long,
// since the processor prefetches one long stream better than many short ones.
template <class A, class Body>
GK_INLINE void sweep(const Columns& columns, Body&& body) {
  const int64_t width = columns.width;
  const int64_t vectors = width / kLanes<A> * kLanes<A>;
  int64_t offset = 0;
  for (int64_t row = 0; row < columns.rows; ++row, offset += width) {
    for (int64_t j = 0; j < vectors; j += kLanes<A>) body.template operator()<Vector<A>>(offset + j, j);
    for (int64_t j = vectors; j < width; ++j) body.template operator()<A>(offset + j, j);
  }
  for (int64_t j = 0; j < columns.remainder; ++j) body.template operator()<A>(offset + j, j);
}

template <class A>
GK_INLINE void clear(A* columns, int64_t width) {
  for (int64_t j = 0; j < width; ++j) columns[j] = 0;
}

// Rows whose numbers are added one after the other; the sums of such runs are then added up. The rounding error of a
// sum grows with the length of its chains, and a tile's hundreds of rows would make them long.
inline constexpr int64_t kRunRows = 16;

// A sweep for sums: body(offset, column, sums) adds to sums[0..kSums), which are registers; total[0..kSums) has them
// over the whole tile at its end. Each column takes kStrip rows in one go: fewer loads and stores of sums, but more
// streams from memory, so that 16-bit numbers gain and a second fp32 operand loses (both were measured).
template <class A, int64_t kStrip, int kSums, class Body>
GK_INLINE void sweep_sums(const Columns& columns, A* const (&run)[kSums], A* const (&total)[kSums], Body&& body) {
  const int64_t width = columns.width, vectors = width / kLanes<A> * kLanes<A>;
  const auto strip = [&]<class V, int64_t kRows>(int64_t first, int64_t j) GK_LAMBDA_INLINE {
    V sums[kSums] = {};
    for (int64_t r = 0; r < kRows; ++r) body(first + r * width + j, j, sums);
    for (int k = 0; k < kSums; ++k) add(run[k] + j, sums[k]);
  };
  const auto rows_at = [&]<int64_t kRows>(int64_t row) GK_LAMBDA_INLINE {
    for (int64_t j = 0; j < vectors; j += kLanes<A>) strip.template operator()<Vector<A>, kRows>(row * width, j);
    for (int64_t j = vectors; j < width; ++j) strip.template operator()<A, kRows>(row * width, j);
  };
  for (A* sum : total) clear(sum, width);
  int64_t row = 0;
  do {
    for (A* sum : run) clear(sum, width);
    const int64_t end = row + kRunRows < columns.rows ? row + kRunRows : columns.rows;
    for (; row + kStrip <= end; row += kStrip) rows_at.template operator()<kStrip>(row);
    for (; row < end; ++row) rows_at.template operator()<1>(row);
    if (row == columns.rows)
      for (int64_t j = 0; j < columns.remainder; ++j) strip.template operator()<A, 1>(row * width, j);
    for (int k = 0; k < kSums; ++k)
      for (int64_t j = 0; j < width; ++j) total[k][j] += run[k][j];
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

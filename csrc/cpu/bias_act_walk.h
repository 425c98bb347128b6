// How bias_act's passes walk over memory, whatever they compute: tiles become blocks of rows, for which a pass is
// called. Included by bias_act.cpp, which is built once per instruction set.
#pragma once

#include "bias_act.h"
#include "tile.h"

namespace gankernels::bias_act::cpu::GK_ISA {

using namespace gankernels::cpu::GK_ISA;

// `count` numbers, whole steps, of each of `rows` rows. A row is a run of columns, which have values of their own, in
// the order of Columns::arrange; or, where it is planar, of one plane, whose numbers share one value.
template <class T>
struct Block {
  using A = AccumulatorT<T>;
  const T* in[3] = {};  // of which a pass takes what it needs
  T* out[2] = {};
  const A *bias = nullptr, *ddbias = nullptr;  // of each column or row
  A* sums = nullptr;                           // of each column (added to) or row (set); null where they are not wanted
  int64_t rows = 0, stride = 0, count = 0;
  bool planar = false, past_cache = false;

  // The block with its tensors `numbers` further on.
  GK_INLINE Block at(int64_t numbers) const {
    Block b = *this;
    for (const T*& x : b.in) x = x ? x + numbers : x;
    for (T*& y : b.out) y = y ? y + numbers : y;
    return b;
  }
};

// Numbers of a column, or steps of a plane, that are added one after the other; the sums of such runs are then added
// up. The rounding error of a sum grows with the length of its chains.
inline constexpr int64_t kRun = 16;

// How far ahead a step asks for its operands, and for the lines that it will write.
inline constexpr int64_t kPrefetchBytes = 1024;

template <bool kWrite, class T>
GK_INLINE void prefetch(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes, kWrite);
}

// One step of a block: out = body(in, bias, ddbias, out) for each of its registers, whose summands are added to `sums`.
template <class T, int kIn, int kOut, bool kSums, class V, class Body>
GK_INLINE void step_of(const Block<T>& b, int64_t e, const AccumulatorT<T>* bias, const AccumulatorT<T>* ddbias,
                       bool streamed, V (&sums)[kRegisters<T>], Body&& body) {
  constexpr int registers = kRegisters<T>;
  V in[kIn][registers], out[kOut][registers];
  for (int k = 0; k < kIn; ++k) prefetch<false>(b.in[k] + e);
  for (int k = 0; k < kOut && !streamed; ++k) prefetch<true>(b.out[k] + e);
  for (int k = 0; k < kIn; ++k) load_step(b.in[k] + e, in[k]);
  for (int r = 0; r < registers; ++r) {
    V x[kIn], y[kOut];
    for (int k = 0; k < kIn; ++k) x[k] = in[k][r];
    const int64_t c = r * kLanes<AccumulatorT<T>>;
    const V summand = body(x, load<V>(bias + c), load<V>(ddbias + c), y);
    for (int k = 0; k < kOut; ++k) out[k][r] = y[k];
    if constexpr (kSums) sums[r] += summand;
  }
  for (int k = 0; k < kOut; ++k) {
    if (streamed) {
      stream_step(b.out[k] + e, out[k]);
    } else {
      store_step(b.out[k] + e, out[k]);
    }
  }
}

// out = body(in, bias, ddbias, out) for every register of a block. body returns what is summed, where kSums says so.
template <class T, int kIn, int kOut, bool kSums, class Body>
GK_INLINE void for_each_register(const Block<T> b, Body&& body) {
  using A = AccumulatorT<T>;
  using V = Vector<A>;
  constexpr int64_t step = kStep<T>, lanes = kLanes<A>;
  constexpr int registers = kRegisters<T>;
  bool streamed = b.past_cache;
  for (int k = 0; k < kOut; ++k) streamed = streamed && streamable_steps(b.out[k], b.stride);

  if (b.planar) {
    for (int64_t row = 0; row < b.rows; ++row) {
      alignas(64) A bias[step], ddbias[step];
      for (int64_t i = 0; i < step; ++i) bias[i] = b.bias[row], ddbias[i] = b.ddbias[row];
      V total[registers] = {};
      for (int64_t j = 0; j < b.count; j += kRun * step) {
        const int64_t end = b.count - j < kRun * step ? b.count : j + kRun * step;
        V sums[registers] = {};
        for (int64_t i = j; i < end; i += step)
          step_of<T, kIn, kOut, kSums>(b, row * b.stride + i, bias, ddbias, streamed, sums, body);
        for (int r = 0; r < registers; ++r) total[r] += sums[r];
      }
      if (!kSums || !b.sums) continue;
      for (int r = 1; r < registers; ++r) total[0] += total[r];
      A sum = 0;
      for (int64_t i = 0; i < lanes; ++i) sum += total[0][i];
      b.sums[row] = sum;
    }
    return;
  }
  // Along the rows, one long stream, with the sums of columns in memory. Strips of rows, or of columns with their sums
  // in registers, would save loads and stores, and lost more by their jumps.
  const bool with_sums = kSums && b.sums;
  for (int64_t row = 0; row < b.rows; ++row)
    for (int64_t j = 0; j < b.count; j += step) {
      V sums[registers] = {};
      step_of<T, kIn, kOut, kSums>(b, row * b.stride + j, b.bias + j, b.ddbias + j, streamed, sums, body);
      if (with_sums)
        for (int r = 0; r < registers; ++r) add(b.sums + j + r * lanes, sums[r]);
    }
}

// Calls a pass for the blocks of tiles.
template <class T>
class Walk {
  using A = AccumulatorT<T>;

 public:
  // By value: what a pass stores might otherwise be what it reads next.
  using Pass = void (*)(Block<T>, Constants<A>);

  // `tensors` has whole tensors, and nothing else. `bias` and `ddbias` [C] are null for zeros; `partial` is null where
  // no sums are wanted.
  Walk(const Problem& problem, const Block<T>& tensors, const void* bias, const void* ddbias, void* partial, Pass pass)
      : p_(problem),
        t_(tiling(problem)),
        k_(problem),
        tensors_(tensors),
        partial_(static_cast<A*>(partial)),
        pass_(pass),
        scratch_(4, kWidest) {
    of_channel_[0] = static_cast<const A*>(bias), of_channel_[1] = static_cast<const A*>(ddbias);
    k_.slope = plain(k_.slope), k_.gain = plain(k_.gain);
    // What a pass reads and writes, against what a forward of two large tensors does.
    int64_t count = 0;
    for (const T* x : tensors.in) count += x != nullptr;
    for (const T* y : tensors.out) count += y != nullptr;
    tensors_.past_cache = count * p_.size() * int64_t(sizeof(T)) >= 2 * kLargeBytes;
  }

  void tiles(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) t_.planes ? planes(i) : columns(i);
    end_of_stream();
  }

 private:
  static constexpr int64_t kWidest = kMostColumns + 64 * kLanes<A>;
  static constexpr int64_t kNarrow = 256;  // columns; below, what a run costs by itself is more than a few percent

  // What a channel brings along.
  A value(int q, int64_t c) const { return of_channel_[q] ? plain(of_channel_[q][c]) : A(0); }

  // ---- Long planes: rows are planes, or the pieces of one ----

  void planes(int64_t index) {
    const int64_t first = index / t_.pieces * t_.rows, begin = index % t_.pieces * t_.span;
    const int64_t planes = p_.outer * p_.channels, rows = planes - first < t_.rows ? planes - first : t_.rows;
    const int64_t length = p_.inner - begin < t_.span ? p_.inner - begin : t_.span;
    const int64_t whole = length / kStep<T> * kStep<T>;
    Block<T> b = tensors_.at(first * p_.inner + begin);
    b.rows = rows, b.stride = p_.inner, b.count = whole, b.planar = true;
    A *bias = scratch_[0], *ddbias = scratch_[1], *sums = scratch_[2];
    for (int64_t r = 0, c = first % p_.channels; r < rows; ++r) {
      bias[r] = value(0, c), ddbias[r] = value(1, c), sums[r] = 0;
      if (++c == p_.channels) c = 0;
    }
    b.bias = bias, b.ddbias = ddbias, b.sums = partial_ ? sums : nullptr;
    pass_(b, k_);
    if (whole < length)
      for (int64_t r = 0; r < rows; ++r) {
        alignas(64) A of_row[3][kStep<T>];
        for (int64_t j = 0; j < kStep<T>; ++j) of_row[0][j] = bias[r], of_row[1][j] = ddbias[r], of_row[2][j] = 0;
        odd_end(tensors_.at((first + r) * p_.inner + begin + whole), 1, p_.inner, length - whole, of_row[0], of_row[1],
                of_row[2]);
        for (int64_t j = 0; j < length - whole; ++j) sums[r] += of_row[2][place(j)];
      }
    if (!partial_) return;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = (first + r) / p_.channels, c = (first + r) % p_.channels;
      partial_[(n * t_.pieces + index % t_.pieces) * p_.channels + c] = sums[r];
    }
  }

  // ---- Short planes, side by side ----

  void columns(int64_t index) {
    const int64_t slot = index % t_.slots, block = index / t_.slots;
    const int64_t first_row = slot * t_.rows, first = block * t_.block;
    const int64_t rows = p_.outer - first_row < t_.rows ? p_.outer - first_row : t_.rows;
    const int64_t width = t_.width - first < t_.block ? t_.width - first : t_.block;
    const Columns columns = columns_of(width, rows);
    const int64_t stride = t_.blocks > 1 ? t_.width : columns.width;
    fill(columns, first / p_.inner, width / p_.inner);

    Block<T> b = tensors_.at(first_row * t_.width + first);
    const int64_t run = partial_ ? kRun : columns.rows;
    A *sums = scratch_[2], *total = scratch_[3];
    if (partial_) clear(total, columns.stepped);
    for (int64_t row = 0; row < columns.rows; row += run) {
      if (partial_) clear(sums, columns.stepped);
      rows_of(b.at(row * stride), columns.rows - row < run ? columns.rows - row : run, stride, columns.width);
      if (row + run >= columns.rows && columns.remainder > 0)
        rows_of(b.at(columns.rows * stride), 1, stride, columns.remainder);
      if (partial_)
        for (int64_t j = 0; j < columns.stepped; ++j) total[j] += sums[j];
    }
    if (partial_) fold(columns, width / p_.inner, partial_ + slot * p_.channels + first / p_.inner);
  }

  // Rows are joined into wider ones where the tile is one piece of memory, and with them the runs that are summed.
  Columns columns_of(int64_t width, int64_t rows) const {
    Columns columns = {width, rows, 0, 0};
    if (t_.blocks == 1) {
      columns = Columns::of<T>(Tile{0, 0, 0, width, rows, 0});
      const int64_t total = width * rows;
      while (columns.width < kNarrow && columns.width * 4 <= total) columns.width *= 2;
      columns.rows = total / columns.width, columns.remainder = total % columns.width;
    }
    columns.stepped = (columns.width + kStep<T> - 1) / kStep<T> * kStep<T>;
    return columns;
  }

  // The values of columns, kept from tile to tile.
  void fill(const Columns& columns, int64_t c0, int64_t channels) {
    if (columns.width == filled_width_ && c0 == filled_c0_) return;
    filled_width_ = columns.width, filled_c0_ = c0;
    for (int q = 0; q < 2; ++q) {
      A* dst = scratch_[q];
      for (int64_t c = 0; c < channels; ++c) {
        const A of_channel = value(q, c0 + c);
        for (int64_t l = 0; l < p_.inner; ++l) dst[c * p_.inner + l] = of_channel;
      }
      for (int64_t j = channels * p_.inner; j < columns.width; ++j) dst[j] = dst[j - channels * p_.inner];
      for (int64_t j = columns.width; j < columns.stepped; ++j) dst[j] = 0;
      columns.arrange<T>(dst);
    }
  }

  // `count` columns of each of `rows` rows.
  void rows_of(Block<T> b, int64_t rows, int64_t stride, int64_t count) {
    const int64_t whole = count / kStep<T> * kStep<T>;
    b.rows = rows, b.stride = stride, b.count = whole, b.planar = false;
    b.bias = scratch_[0], b.ddbias = scratch_[1], b.sums = partial_ ? scratch_[2] : nullptr;
    if (whole > 0) pass_(b, k_);
    for (int64_t row = 0; whole < count && row < rows; row += kRun)
      odd_end(b.at(row * stride + whole), rows - row < kRun ? rows - row : kRun, stride, count - whole, b.bias + whole,
              b.ddbias + whole, scratch_[2] + whole);
  }

  void fold(const Columns& columns, int64_t channels, A* partial) {
    A* total = scratch_[3];
    columns.restore<T>(total);
    const int64_t width = channels * p_.inner;
    for (int64_t k = width; k < columns.width; k += width)
      for (int64_t j = 0; j < width; ++j) total[j] += total[k + j];
    if (p_.inner == 1) {
      std::memcpy(partial, total, channels * sizeof(A));
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      A sum = 0;
      for (int64_t l = 0; l < p_.inner; ++l) sum += total[c * p_.inner + l];
      partial[c] = sum;
    }
  }

  // ---- Less than a step: by way of a copy ----

  // Where a step's arrays hold its number j.
  static int64_t place(int64_t j) { return Columns{kStep<T>, 0, 0, kStep<T>}.template place<T>(j); }

  void odd_end(const Block<T>& from, int64_t rows, int64_t stride, int64_t count, const A* bias, const A* ddbias,
               A* sums) {
    constexpr int64_t step = kStep<T>;
    T in[3][kRun * step] = {}, out[2][kRun * step];
    Block<T> b = {{in[0], in[1], in[2]},
                  {out[0], out[1]},
                  bias,
                  ddbias,
                  partial_ ? sums : nullptr,
                  rows,
                  step,
                  step,
                  false,
                  false};
    for (int k = 0; k < 3; ++k)
      for (int64_t row = 0; from.in[k] && row < rows; ++row)
        std::memcpy(in[k] + row * step, from.in[k] + row * stride, count * sizeof(T));
    pass_(b, k_);
    for (int k = 0; k < 2; ++k)
      for (int64_t row = 0; from.out[k] && row < rows; ++row)
        std::memcpy(from.out[k] + row * stride, out[k] + row * step, count * sizeof(T));
  }

  const Problem p_;
  const Tiling t_;
  Constants<A> k_;
  Block<T> tensors_;
  const A* of_channel_[2];
  A* partial_;
  Pass pass_;
  Scratch<A> scratch_;
  int64_t filled_width_ = -1, filled_c0_ = -1;
};

}  // namespace gankernels::bias_act::cpu::GK_ISA

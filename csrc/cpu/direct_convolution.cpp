// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "direct_convolution.h"

#include <utility>

#include "scratch.h"

namespace gankernels::direct_convolution::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

using V = Vector<float>;

// A tile of y: kRows pixels by two registers of outputs. A channel of a tap is 2 loads of its weights and kRows
// broadcasts for 2 kRows multiply-adds: 8 loads for 12 with AVX2, of which a core does two each in a cycle. So 4 cycles
// of loads hide behind 6 of arithmetic, and 12 sums hide its latency of 4 with two a cycle.
inline constexpr int64_t kRows = GK_VECTOR_BYTES == 16 ? 4 : GK_VECTOR_BYTES == 32 ? 6 : 12;
inline constexpr int64_t kLane = kLanes<float>, kColumns = 2 * kLane;

// Pixels of y in a block, at most, and numbers of x in one group of it, which all its panels read: half of a core's
// second cache. A block's own lines of y must find room beside them.
inline constexpr int64_t kPixels = 256, kNumbers = 65536;

// Where the numbers of a pixel of y begin, and those that its first tap sees: a place outside of x where that tap does.
struct Pixel {
  int64_t x, y;
};

// How far a tap's pixel and its weights are from the first one's.
struct Tap {
  int64_t x, weights;
};

// Neighbours along an axis of y that the same taps [tap_first, tap_last) see inside of x.
struct Run {
  int64_t first, last, tap_first, tap_last;
};

// The runs of an axis, in their order; a run at least for each time that a tap comes in or goes out.
GK_INLINE int64_t list(const Axis& axis, Run* runs) {
  int64_t count = 0;
  for (int64_t i = 0; i < axis.out; ++i) {
    const int64_t at = axis.stride * i - axis.padding;
    const int64_t last = most(0, least(axis.taps, floor_div(axis.in - 1 - at, axis.dilation) + 1));
    const int64_t first = least(last, most(0, -floor_div(at, axis.dilation)));
    if (count > 0 && runs[count - 1].tap_first == first && runs[count - 1].tap_last == last)
      ++runs[count - 1].last;
    else
      runs[count++] = {i, i + 1, first, last};
  }
  return count;
}

// What a tile is made of: `taps` for all of its pixels, and an end of outputs that may be narrower than a panel.
struct Work {
  const float *x, *panel, *bias;
  float* y;
  const Tap *taps, *last_tap;
  int64_t inputs, outputs;
  int64_t ahead;   // of a pixel's last tap
  int64_t second;  // where the second register's inputs are: of the next group, or the same
};

// Out of the tiles, for the odd end of a group's outputs alone.
__attribute__((noinline)) void put(const float* sums, const float* bias, float* y, int64_t outputs) {
  for (int64_t o = 0; o < outputs; ++o) y[o] = bias ? sums[o] + bias[o] : sums[o];
}

// kPaired: the second register has a group of its own. 14 loads for 12 multiply-adds: 7 cycles of them for 6.
template <bool kPaired, int64_t kCount>
void tile(const Work& work, const Pixel* pixels) {
  // What the tile makes, and the last of what the next one sees: lines far from each other, which no hardware guesses.
  for (int64_t r = 0; r < kCount; ++r) {
    __builtin_prefetch(work.y + pixels[r].y, 1);
    __builtin_prefetch(work.x + (pixels[kRows + r].x + work.ahead));
  }
  V sum[kCount][2] = {};
  for (const Tap* tap = work.taps; tap != work.last_tap; ++tap) {
    const float* weights = work.panel + tap->weights;
    const float* x[kCount];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kCount; ++r) x[r] = work.x + (pixels[r].x + tap->x);
    for (int64_t c = 0; c < work.inputs; ++c, weights += kColumns) {
      const V w0 = load<V>(weights), w1 = load<V>(weights + kLane);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kCount; ++r) {
        sum[r][0] += x[r][c] * w0;
        sum[r][1] += x[r][kPaired ? c + work.second : c] * w1;
      }
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kCount; ++r) {
    float* const y = work.y + pixels[r].y;
    if (work.outputs < kColumns) {
      float sums[kColumns];
      std::memcpy(sums, sum[r], sizeof sums);
      put(sums, work.bias, y, work.outputs);
      continue;
    }
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t o = h * kLane;
      store(y + o, work.bias ? sum[r][h] + load<V>(work.bias + o) : sum[r][h]);
    }
  }
}

// By the number of pixels, less one: the last tile may have fewer than kRows.
using Tile = decltype(&tile<false, kRows>);
template <bool kPaired, class Sizes>
struct Tiles;
template <bool kPaired, int64_t... kSize>
struct Tiles<kPaired, std::integer_sequence<int64_t, kSize...>> {
  static constexpr Tile of[] = {tile<kPaired, kSize + 1>...};
};
template <bool kPaired>
using AllTiles = Tiles<kPaired, std::make_integer_sequence<int64_t, kRows>>;

// Groups whose outputs fill one register go two by two.
GK_INLINE bool is_paired(const Problem& p) {
  return p.groups > 1 && p.outputs == kLane;
}

// What a thread works in.
class Convolution {
 public:
  explicit Convolution(const Args& args)
      : args_(args),
        p_(args.problem),
        row_runs_(p_.rows.out),
        column_runs_(p_.columns.out),
        pixels_(per_block() * p_.columns.out + 2 * kRows),
        taps_(p_.rows.taps * p_.columns.taps),
        row_count_(list(p_.rows, row_runs_.get())),
        column_count_(list(p_.columns, column_runs_.get())) {}

  void rows(int64_t begin, int64_t end) {
    const int64_t blocks = ceil_div(end - begin, per_block()), rows = ceil_div(end - begin, most(1, blocks));
    for (int64_t first = begin; first < end; first += rows) block(first, least(end, first + rows));
  }

 private:
  int64_t per_block() const { return most(1, least(kPixels, kNumbers / p_.inputs) / p_.columns.out); }

  void block(int64_t first, int64_t last) {
    for (int64_t r = 0; r < row_count_; ++r)
      for (int64_t c = 0; c < column_count_; ++c) {
        const Run &rows = row_runs_.get()[r], &columns = column_runs_.get()[c];
        const int64_t pixels = list_pixels(first, last, rows, columns), taps = list_taps(rows, columns);
        if (pixels > 0) groups(pixels, taps);
      }
  }

  // The pixels of y that are in rows [first, last) of all samples, and in both runs.
  GK_INLINE int64_t list_pixels(int64_t first, int64_t last, const Run& rows, const Run& columns) {
    const Axis &y = p_.rows, &x = p_.columns;
    const int64_t in = p_.groups * p_.inputs, out = p_.groups * p_.outputs;
    Pixel* pixel = pixels_.get();
    for (int64_t n = first / y.out; n * y.out < last; ++n) {
      const int64_t end = least(rows.last, last - n * y.out);
      for (int64_t i = most(rows.first, first - n * y.out); i < end; ++i) {
        const int64_t row = (n * y.in + y.stride * i - y.padding) * x.in - x.padding;
        for (int64_t j = columns.first; j < columns.last; ++j)
          *pixel++ = {(row + x.stride * j) * in, ((n * y.out + i) * x.out + j) * out};
      }
    }
    const int64_t count = pixel - pixels_.get();
    // For the last tiles to look ahead.
    for (int64_t r = 0; r < 2 * kRows && count > 0; ++r) pixel[r] = pixel[-1];
    return count;
  }

  GK_INLINE int64_t list_taps(const Run& rows, const Run& columns) {
    const int64_t in = p_.groups * p_.inputs;
    Tap* tap = taps_.get();
    for (int64_t k = rows.tap_first; k < rows.tap_last; ++k)
      for (int64_t l = columns.tap_first; l < columns.tap_last; ++l)
        *tap++ = {(p_.rows.dilation * k * p_.columns.in + p_.columns.dilation * l) * in,
                  (k * p_.columns.taps + l) * p_.inputs * kColumns};
    return tap - taps_.get();
  }

  GK_INLINE void groups(int64_t pixels, int64_t taps) {
    const int64_t panel = p_.rows.taps * p_.columns.taps * p_.inputs * kColumns;
    const bool paired = is_paired(p_);
    const Tile* const tiles = paired ? AllTiles<true>::of : AllTiles<false>::of;
    Work work = {args_.x,
                 args_.panels,
                 args_.bias,
                 args_.y,
                 taps_.get(),
                 taps_.get() + taps,
                 p_.inputs,
                 0,
                 taps > 0 ? taps_.get()[taps - 1].x : 0,
                 0};
    for (int64_t group = 0; group < p_.groups;) {
      const int64_t together = paired ? least(2, p_.groups - group) : 1, outputs = together * p_.outputs;
      work.second = (together - 1) * p_.inputs;
      for (int64_t o = 0; o < outputs; o += kColumns) {
        work.outputs = least(kColumns, outputs - o);
        for (int64_t i = 0; i < pixels; i += kRows) tiles[least(kRows, pixels - i) - 1](work, pixels_.get() + i);
        work.panel += panel, work.y += work.outputs;
        if (work.bias) work.bias += work.outputs;
      }
      group += together, work.x += together * p_.inputs;
    }
  }

  const Args& args_;
  const Problem& p_;
  Lines<Run> row_runs_, column_runs_;
  Lines<Pixel> pixels_;
  Lines<Tap> taps_;
  const int64_t row_count_, column_count_;
};

int64_t panels(const Problem& p) {
  return is_paired(p) ? ceil_div(p.groups, 2) : p.groups * ceil_div(p.outputs, kColumns);
}

// One half of a panel [inputs, kColumns] for one tap.
GK_INLINE void pack_half(const float* from, const Weight& w, int64_t inputs, int64_t outputs, float* to) {
  for (int64_t c = 0; c < inputs; ++c, to += kColumns) {
    const float* const input = from + c * w.input;
    if (outputs < kLane)
      for (int64_t o = 0; o < kLane; ++o) to[o] = o < outputs ? input[o * w.output] : 0;
    else if (w.output == 1)
      std::memcpy(to, input, kLane * sizeof(float));
    else
      for (int64_t o = 0; o < kLane; ++o) to[o] = input[o * w.output];
  }
}

void pack(const Problem& p, const Weight& w, float* to, int64_t begin, int64_t end) {
  const int64_t in_group = ceil_div(p.outputs, kColumns), tap = p.inputs * kColumns;
  to += begin * p.rows.taps * p.columns.taps * tap;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t k = 0; k < p.rows.taps; ++k)
      for (int64_t l = 0; l < p.columns.taps; ++l, to += tap)
        for (int64_t h = 0; h < 2; ++h) {
          const int64_t group = is_paired(p) ? 2 * panel + h : panel / in_group;
          const int64_t first = is_paired(p) ? 0 : panel % in_group * kColumns + h * kLane;
          const int64_t count = group < p.groups ? most(0, least(kLane, p.outputs - first)) : 0;
          pack_half(w.data + group * w.group + first * w.output + k * w.row + l * w.column, w, p.inputs, count,
                    to + h * kLane);
        }
}

void pass(const Args& args, int64_t begin, int64_t end) {
  Convolution(args).rows(begin, end);
}

}  // namespace

extern const Kernel kernel = {kColumns, panels, pack, pass};

}  // namespace gankernels::direct_convolution::cpu::GK_ISA

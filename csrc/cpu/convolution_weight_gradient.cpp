// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "convolution_weight_gradient.h"

#include <utility>

#include "scratch.h"

namespace gankernels::convolution_weight_gradient::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

using V = Vector<float>;

// A tile of dw: kRows channels of small by two registers of big's. So many accumulators that their latency is hidden,
// with two registers for big and one for small.
inline constexpr int64_t kRows = GK_VECTOR_BYTES == 16 ? 4 : GK_VECTOR_BYTES == 32 ? 6 : 12;
inline constexpr int64_t kColumns = 2 * kLanes<float>;

// Pixels of small in a block: a panel of big's tap for them, kColumns wide, fills half of the first cache.
inline constexpr int64_t kPixels = 256;
// Numbers of small that are packed at a time: three quarters of a core's second cache, for 384 channels to go at once.
inline constexpr int64_t kPacked = 98304;
// Pixels that go to all panels of small before the next ones do: so many that what a panel takes is some lines.
inline constexpr int64_t kStrip = 16;

// Where a pixel's numbers begin in the panels of small and of big.
struct Pixel {
  int64_t small, big;
};

// Rows [first, last) of small, of those of all samples.
struct Block {
  int64_t first, last;
};

// The rows of one sample in a block, and the rows of big that they see.
struct Section {
  int64_t sample, first, last, big_first, big_last;
};

// How a problem is cut into blocks, and how a block's panels lie in memory.
struct Blocking {
  const Problem& p;
  int64_t rows;       // of small in all samples
  int64_t per_block;  // of these

  explicit Blocking(const Problem& problem) : p(problem), rows(p.samples * p.rows.out) {
    const int64_t blocks = ceil_div(rows, most(kPixels / p.columns.out, 1));
    per_block = ceil_div(rows, blocks);
  }

  // Pixels of big between which the kernel's steps lie are apart in memory: a plane for each row and column modulo the
  // stride, so that those of one tap are neighbours and do not compete for the first cache's sets.
  int64_t plane_rows() const { return ceil_div(most_big_rows(), p.rows.stride); }
  int64_t plane_columns() const { return ceil_div(p.columns.in, p.columns.stride); }
  int64_t big_size() const { return p.rows.stride * p.columns.stride * plane_rows() * plane_columns() * kColumns; }
  // Where the panel has a row of big, the block's row number `row`, in the planes of a column modulo the stride.
  int64_t big_row(int64_t row, int64_t phase) const {
    return ((phase * p.rows.stride + row % p.rows.stride) * plane_rows() + row / p.rows.stride) * plane_columns() *
           kColumns;
  }

  template <class Each>
  GK_INLINE void sections(const Block& block, Each&& each) const {
    const Axis& y = p.rows;
    for (int64_t row = block.first; row < block.last;) {
      const int64_t n = row / y.out, first = row - n * y.out;
      const int64_t last = least(y.out, first + block.last - row);
      const int64_t big_first = most(0, y.stride * first - y.padding);
      const int64_t big_last = least(y.in, y.stride * (last - 1) - y.padding + y.dilation * (y.taps - 1) + 1);
      each(Section{n, first, last, big_first, most(big_first, big_last)});
      row += last - first;
    }
  }

  // Rows of big that a block sees, at most.
  int64_t most_big_rows() const {
    const Axis& y = p.rows;
    const int64_t sections = least(per_block, (per_block - 1) / y.out + 2);
    return least(sections * y.in, y.stride * per_block + sections * (y.dilation * (y.taps - 1) + 1));
  }
};

// The pixels of a block that a tap sees inside of big.
GK_INLINE int64_t list(const Blocking& blocking, const Block& block, int64_t k, int64_t l, Pixel* pixels) {
  const Axis &y = blocking.p.rows, &x = blocking.p.columns;
  const int64_t shift = x.dilation * l - x.padding;
  // s j + shift is the pixel j + `ahead` of one phase.
  const int64_t ahead = floor_div(shift, x.stride), phase = shift - ahead * x.stride;
  const int64_t first = most(0, -ahead), last = least(x.out, ceil_div(x.in - phase, x.stride) - ahead);
  int64_t count = 0, small_row = 0, big_row = 0;
  blocking.sections(block, [&](const Section& s) GK_LAMBDA_INLINE {
    for (int64_t i = s.first; i < s.last; ++i, ++small_row) {
      const int64_t row = y.stride * i + y.dilation * k - y.padding;
      if (row < 0 || row >= y.in) continue;
      const int64_t small = small_row * x.out * kRows;
      const int64_t big = blocking.big_row(big_row + row - s.big_first, phase) + ahead * kColumns;
      for (int64_t j = first; j < last; ++j) pixels[count++] = {small + j * kRows, big + j * kColumns};
    }
    big_row += s.big_last - s.big_first;
  });
  return count;
}

// `count` channels of a block of small, in panels of kRows, pixel behind pixel. A register is wider than
// that: what it has besides, the next pixel overwrites, and behind a panel there is room for one.
template <class T>
GK_INLINE void pack_small(const T* small, int64_t channels, int64_t count, int64_t pixels, float* strip, float* to) {
  for (int64_t begin = 0; begin < pixels; begin += kStrip) {
    const int64_t many = least(kStrip, pixels - begin);
    const float* from;
    int64_t stride;
    if constexpr (sizeof(T) == sizeof(float)) {
      from = small + begin * channels, stride = channels;
    } else {
      for (int64_t i = 0; i < many; ++i) {
        const T* pixel = small + (begin + i) * channels;
        int64_t c = 0;
        for (; c + kLanes<float> <= count; c += kLanes<float>) store(strip + i * count + c, load<V>(pixel + c));
        for (; c < count; ++c) strip[i * count + c] = load<float>(pixel + c);
      }
      from = strip, stride = count;
    }
    for (int64_t c = 0; c < count; c += kRows) {
      float* panel = to + c * (pixels + 1) + begin * kRows;
      const int64_t valid = least(kRows, count - c);
      if (count - c >= kLanes<float>) {
        for (int64_t i = 0; i < many; ++i) store(panel + i * kRows, load<V>(from + i * stride + c));
      } else {
        for (int64_t i = 0; i < many; ++i)
          for (int64_t r = 0; r < valid; ++r) panel[i * kRows + r] = from[i * stride + c + r];
      }
    }
  }
}

// `count` channels, at most kColumns, of the rows of big that a block sees.
template <class T>
GK_INLINE void pack_big(const Blocking& blocking, const Block& block, const T* big, int64_t first, int64_t count,
                        float* to) {
  const Axis& x = blocking.p.columns;
  const int64_t channels = blocking.p.groups * blocking.p.big_channels;
  int64_t big_row = 0;
  blocking.sections(block, [&](const Section& s) GK_LAMBDA_INLINE {
    for (int64_t row = s.big_first; row < s.big_last; ++row, ++big_row) {
      const T* from = big + ((s.sample * blocking.p.rows.in + row) * x.in) * channels + first;
      for (int64_t phase = 0; phase < x.stride; ++phase) {
        float* at = to + blocking.big_row(big_row, phase);
        for (int64_t j = phase; j < x.in; j += x.stride, at += kColumns) {
          const T* pixel = from + j * channels;
          if (count == kColumns) {
            store(at, load<V>(pixel));
            store(at + kLanes<float>, load<V>(pixel + kLanes<float>));
          } else {
            for (int64_t c = 0; c < kColumns; ++c) at[c] = c < count ? load<float>(pixel + c) : 0;
          }
        }
      }
    }
  });
}

// dw [columns] = sums, or += after the first block. Out of the tiles, for the odd end of big's channels alone.
__attribute__((noinline)) void put(const float* sums, float* dw, int64_t columns, bool is_first) {
  for (int64_t c = 0; c < columns; ++c) dw[c] = is_first ? sums[c] : dw[c] + sums[c];
}

// Adds to dw [kCount, columns], a row `stride` behind the other, the sum over the pixels; the first block stores it.
template <int64_t kCount>
void tile(const float* small, const float* big, const Pixel* pixel, int64_t count, float* dw, int64_t stride,
          int64_t columns, bool is_first) {
  V sum[kCount][2] = {};
  for (int64_t r = 0; r < kCount; ++r) __builtin_prefetch(dw + r * stride, 1);
  for (const Pixel* const end = pixel + count; pixel != end; ++pixel) {
    const float *a = small + pixel->small, *b = big + pixel->big;
    const V b0 = load<V>(b), b1 = load<V>(b + kLanes<float>);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kCount; ++r) {
      sum[r][0] += a[r] * b0;
      sum[r][1] += a[r] * b1;
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kCount; ++r, dw += stride) {
    if (columns < kColumns) {
      float sums[kColumns];
      std::memcpy(sums, sum[r], sizeof sums);
      put(sums, dw, columns, is_first);
      continue;
    }
    for (int64_t h = 0; h < 2; ++h) {
      float* const at = dw + h * kLanes<float>;
      store(at, is_first ? sum[r][h] : load<V>(at) + sum[r][h]);
    }
  }
}

// By the number of rows, less one: the last panel of small may have fewer than kRows.
using Tile = decltype(&tile<kRows>);
template <class Sizes>
struct Tiles;
template <int64_t... kSize>
struct Tiles<std::integer_sequence<int64_t, kSize...>> {
  static constexpr Tile of[] = {tile<kSize + 1>...};
};
using AllTiles = Tiles<std::make_integer_sequence<int64_t, kRows>>;

// Channels [first, last) of a group.
struct Channels {
  int64_t first, last;
};

// What is added at a time: the pixels of a block to some channels of a group.
struct Piece {
  Block block;
  int64_t group;
  Channels small, big;
};

// Rows of memory, one `step` bytes behind the other, that later tiles read.
struct Ahead {
  static constexpr int64_t kLine = 64;

  const void* row;
  int64_t rows, step, bytes, at = 0;

  int64_t lines() const { return rows * ceil_div(bytes, kLine); }

  // The next `count` lines of them, into the second cache: the first one is the tiles'.
  GK_INLINE void fetch(int64_t count) {
    for (; rows > 0 && count > 0; --count) {
      __builtin_prefetch(static_cast<const char*>(row) + at, 0, 2);
      at += kLine;
      if (at < bytes) continue;
      row = static_cast<const char*>(row) + step;
      at = 0, --rows;
    }
  }
};

// What a thread works in.
template <class T>
class Gradient {
 public:
  Gradient(const Args& args, const Parts& parts)
      : args_(args),
        p_(args.problem),
        parts_(parts),
        blocking_(p_),
        taps_(p_.rows.taps * p_.columns.taps),
        block_pixels_(blocking_.per_block * p_.columns.out),
        chunk_(chunk(least(parts.channels, p_.channels), block_pixels_)),
        small_(chunk_ * (block_pixels_ + 1)),
        big_(blocking_.big_size()),
        strip_(sizeof(T) == sizeof(float) ? 1 : kStrip * chunk_),
        pixels_(taps_ * block_pixels_),
        counts_(taps_) {}

  // Parts [begin, end), all in step: neighbouring groups are neighbours in memory.
  void parts(int64_t begin, int64_t end) {
    for (int64_t offset = 0; offset < least(parts_.channels, p_.channels); offset += chunk_)
      for (int64_t row = 0; row < blocking_.rows; row += blocking_.per_block) {
        const Block block = {row, least(blocking_.rows, row + blocking_.per_block)},
                    next = {block.last, least(blocking_.rows, block.last + blocking_.per_block)};
        for (int64_t tap = 0; tap < taps_; ++tap)
          counts_.get()[tap] =
              list(blocking_, block, tap / p_.columns.taps, tap % p_.columns.taps, pixels_.get() + tap * block_pixels_);
        for (int64_t part = begin; part < end; ++part)
          add(piece(block, part, offset), part + 1 < end ? piece(block, part + 1, offset) : piece(next, begin, offset));
      }
  }

 private:
  // Channels of small whose panels are in memory at a time: as many in each chunk, as far as that goes.
  static int64_t chunk(int64_t channels, int64_t block_pixels) {
    const int64_t chunks = ceil_div(channels, most(kPacked / block_pixels, kRows));
    return ceil_div(ceil_div(channels, chunks), kRows) * kRows;
  }

  // The channels of a part from its number `offset` on that go at a time, with the pixels of a block.
  GK_INLINE Piece piece(const Block& block, int64_t part, int64_t offset) const {
    const int64_t group = part / parts_.in_group, in_group = part % parts_.in_group;
    const int64_t first = in_group / parts_.across * parts_.channels, begin = first + offset,
                  end = least(least(p_.channels, first + parts_.channels), begin + chunk_);
    const int64_t big = in_group % parts_.across * parts_.big_channels;
    return {block, group, {begin, end}, {big, least(p_.big_channels, big + parts_.big_channels)}};
  }

  GK_INLINE const T* small_at(const Piece& piece) const {
    return static_cast<const T*>(args_.small) + piece.block.first * p_.columns.out * p_.groups * p_.channels +
           piece.group * p_.channels + piece.small.first;
  }

  // Channels from c on of the rows of big that a piece sees.
  GK_INLINE Ahead big_ahead(const Piece& piece, int64_t c) const {
    const int64_t channels = p_.groups * p_.big_channels;
    int64_t first = 0, last = 0;
    blocking_.sections(piece.block, [&](const Section& s) GK_LAMBDA_INLINE {
      if (first == last) first = s.sample * p_.rows.in + s.big_first;
      last = s.sample * p_.rows.in + s.big_last;
    });
    return {static_cast<const T*>(args_.big) + first * p_.columns.in * channels + piece.group * p_.big_channels + c,
            (last - first) * p_.columns.in, channels * int64_t{sizeof(T)}, kColumns * int64_t{sizeof(T)}};
  }

  GK_INLINE Ahead small_ahead(const Piece& piece) const {
    return {small_at(piece), (piece.block.last - piece.block.first) * p_.columns.out,
            p_.groups * p_.channels * int64_t{sizeof(T)}, (piece.small.last - piece.small.first) * int64_t{sizeof(T)}};
  }

  // The tiles of a piece, while what the next one reads comes into the cache.
  GK_INLINE void add(const Piece& piece, const Piece& next) {
    const Channels &small = piece.small, &big = piece.big;
    if (small.first >= small.last) return;
    const int64_t first_pixel = piece.block.first * p_.columns.out,
                  count = piece.block.last * p_.columns.out - first_pixel;
    const int64_t channels = p_.groups * p_.channels, stride = taps_ * p_.big_channels;
    pack_small(small_at(piece), channels, small.last - small.first, count, strip_.get(), small_.get());
    float* const dw = args_.dw + (piece.group * p_.channels + small.first) * stride;
    const int64_t tiles = ceil_div(small.last - small.first, kRows) * taps_;
    Ahead next_small = small_ahead(next);
    const int64_t small_lines = ceil_div(next_small.lines(), tiles * ceil_div(big.last - big.first, kColumns));
    for (int64_t c = big.first; c < big.last; c += kColumns) {
      const int64_t columns = least(kColumns, big.last - c);
      pack_big(blocking_, piece.block, static_cast<const T*>(args_.big), piece.group * p_.big_channels + c, columns,
               big_.get());
      Ahead next_big = c + kColumns < big.last ? big_ahead(piece, c + kColumns) : big_ahead(next, next.big.first);
      const int64_t big_lines = ceil_div(next_big.lines(), tiles);
      for (int64_t tap = 0; tap < taps_; ++tap)
        for (int64_t r = 0; r < small.last - small.first; r += kRows) {
          next_small.fetch(small_lines);
          next_big.fetch(big_lines);
          AllTiles::of[least(kRows, small.last - small.first - r) - 1](
              small_.get() + r * (count + 1), big_.get(), pixels_.get() + tap * block_pixels_, counts_.get()[tap],
              dw + tap * p_.big_channels + c + r * stride, stride, columns, piece.block.first == 0);
        }
    }
  }

  const Args& args_;
  const Problem& p_;
  const Parts& parts_;
  const Blocking blocking_;
  const int64_t taps_, block_pixels_, chunk_;
  Lines<float> small_, big_, strip_;
  Lines<Pixel> pixels_;
  Lines<int64_t> counts_;
};

template <class T>
void pass(const Args& args, const Parts& parts, int64_t begin, int64_t end) {
  Gradient<T>(args, parts).parts(begin, end);
}

}  // namespace

extern const Kernel kernel = {kRows, kColumns, {pass<float>, nullptr, pass<BFloat16>, pass<Float16>}};

}  // namespace gankernels::convolution_weight_gradient::cpu::GK_ISA

// The CPU's passes of conditional batch normalisation, each over a range, so that the caller can spread it over
// threads.
#pragma once

#include "../conditional_batch_norm.h"

namespace gankernels::conditional_batch_norm::cpu {

// Tiles are numbered so that a range of them is contiguous memory (channels_last), or the planes of a range of channels
// (contiguous), so that a channel can go through all passes while it is in the cache.
struct Tiling {
  int64_t tiles;         // in all
  int64_t per_channel;   // contiguous: the tiles [c * per_channel, (c + 1) * per_channel) are channel c's; else 0
  int64_t slots;         // partial results of each channel: one for each tile of it
  int64_t rows_of_tile;  // pixels; the last tile of a sample may have fewer
};
Tiling tiling(const Problem& problem);
int64_t rows_of_slot(const Problem& problem, const Tiling& tiling, int64_t slot);

// Partial results of each order's sums, for every slot and channel, and terms that its affine pass needs of a channel.
inline constexpr int kPartials[3] = {2, 2, 5};
inline constexpr int kTerms[3] = {0, 2, 5};

// `partial` is [kPartials, slots, C], `terms` is [kTerms, C], in the accumulation type; order 0's partial means and
// sums of squares are double, since a mean's rounding is added to every pixel. For each order: sums over tiles, a
// middle step over channels, an affine pass over tiles. Order 0 needs the first two for batch statistics only. Across
// ranks the middle step is the caller's: a fold gives it the sums of every row of gain, [rows, C, kPartials], and the
// statistics of a rank stay double, since they are rounded when they are merged.
struct Passes {
  void (*statistics)(const Forward&, void* partial, int64_t tile_begin, int64_t tile_end);
  void (*merge_statistics)(const Forward&, const void* partial, int64_t c_begin, int64_t c_end);
  void (*merge_statistics_in_double)(const Forward&, const void* partial, int64_t c_begin, int64_t c_end);
  void (*forward)(const Forward&, int64_t tile_begin, int64_t tile_end);

  void (*backward_sums)(const Backward&, void* partial, int64_t tile_begin, int64_t tile_end);
  void (*backward_terms)(const Backward&, const void* partial, void* terms, int64_t c_begin, int64_t c_end);
  void (*backward)(const Backward&, const void* terms, int64_t tile_begin, int64_t tile_end);
  void (*backward_fold)(const Problem&, const void* partial, void* sums, int64_t c_begin, int64_t c_end);

  void (*backward_backward_sums)(const BackwardBackward&, void* partial, int64_t tile_begin, int64_t tile_end);
  void (*backward_backward_terms)(const BackwardBackward&, const void* partial, void* terms, int64_t c_begin,
                                  int64_t c_end);
  void (*backward_backward)(const BackwardBackward&, const void* terms, int64_t tile_begin, int64_t tile_end);
  void (*backward_backward_fold)(const Problem&, const void* partial, void* sums, int64_t c_begin, int64_t c_end);
};

// Sample n of a problem with statistics per_sample, as the problem that it is: a batch of one. The passes know no other
// kind, and a sample goes through all of them while it is in the cache.
Forward sample_of(const Forward& batch, int64_t n);
Backward sample_of(const Backward& batch, int64_t n);
BackwardBackward sample_of(const BackwardBackward& batch, int64_t n);

// The passes for this element type and activation, built for the instruction set that gankernels::cpu::isa() names.
const Passes& passes(DType dtype, Activation activation);

// One table for each instruction set, [dtype][activation]; conditional_batch_norm.cpp makes them.
using Table = Passes[4][3];
namespace baseline {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}

}  // namespace gankernels::conditional_batch_norm::cpu

// The CPU's pass of fold_conv_weight, over a range of tiles, so that the caller can spread it over threads.
#pragma once

#include "../fold_conv_weight.h"

namespace gankernels::fold_conv_weight::cpu {

// Tiles of channel pairs: `block` side by side in the result's memory, in `rows` rows.
struct Tiling {
  int64_t along, across;  // channels; the strides between them
  int64_t from_along, from_across, to_along, to_across;
  int64_t block, blocks, rows, tiles;
};
// Channels that are brought side by side before they are folded, and at most so many taps of them, in all rows.
inline constexpr int64_t kGathered = 32;
inline constexpr int64_t kGatheredTaps = kMostTaps * kMostTaps;
Tiling tiling(const Problem& problem);

using Pass = void (*)(const Args&, int64_t tile_begin, int64_t tile_end);

// The pass for this element type, built for the instruction set that gankernels::cpu::isa() names.
Pass pass(DType dtype);

// One table for each instruction set, [dtype]; fold_conv_weight.cpp makes them.
using Table = Pass[4];
namespace baseline {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}

}  // namespace gankernels::fold_conv_weight::cpu

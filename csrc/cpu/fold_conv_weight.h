// The CPU's pass of fold_conv_weight, over a range of tiles, so that the caller can spread it over threads.
#pragma once

#include "../fold_conv_weight.h"

namespace gankernels::fold_conv_weight::cpu {

// Tiles of channel pairs: `block` channels of the dimension that is innermost in the result, in `rows` rows.
struct Tiling {
  int64_t along, across;  // channels; the strides between them
  int64_t from_along, from_across, to_along, to_across;
  int64_t block, blocks, rows, tiles;
  bool direct;  // both sides have the block's channels side by side
};
// A tile that is not direct is brought into the order [row, tap, kBlock]. At kBlock channels a side, every visit to a
// page of a large weight takes some lines of it and not one: such weights have more pages than the processor has
// translations. A core's second cache holds the tile.
inline constexpr int64_t kBlock = 64, kGathered = 32768;
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

// The CPU's passes of bias_act, each over a range of tiles, so that the caller can spread it over threads.
#pragma once

#include "../bias_act.h"

namespace gankernels::bias_act::cpu {

// Long planes [inner] each have their channel's bias: a tile is `rows` of them, or a piece of one, of `span` numbers.
// Short ones are put side by side: rows of `width` columns [channels * inner], of which a tile has `rows`, and `block`
// columns.
struct Tiling {
  bool planes;
  int64_t tiles;
  int64_t slots;  // partial sums of each channel
  int64_t span, pieces;
  int64_t width, block, blocks, rows;
};
inline constexpr int64_t kMostColumns = 2048;
Tiling tiling(const Problem& problem);

// `partial` is [slots, channels] in the accumulation type: the sums that dbias is made of. It may be null where they
// are not wanted and the activation is piecewise linear; what a smooth activation costs hides them.
struct Passes {
  void (*forward)(const Forward&, int64_t tile_begin, int64_t tile_end);
  void (*backward)(const Backward&, void* partial, int64_t tile_begin, int64_t tile_end);
  void (*backward_backward)(const BackwardBackward&, void* partial, int64_t tile_begin, int64_t tile_end);
};

// The passes for this element type and activation, built for the instruction set that gankernels::cpu::isa() names.
const Passes& passes(DType dtype, Activation activation);

// dbias[c] = sum of its slots, for the channels of a range.
void sum_slots(const Problem& problem, const void* partial, void* dbias, int64_t c_begin, int64_t c_end);

// One table for each instruction set, [dtype][activation]; bias_act.cpp makes them.
using Table = Passes[4][8];
namespace baseline {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}

}  // namespace gankernels::bias_act::cpu

// What does not depend on the instruction set: the parts, and the choice of the kernel.
#include "convolution_weight_gradient.h"
#include "isa_choice.h"

namespace gankernels::convolution_weight_gradient::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Parts parts(const Kernel& kernel, const Problem& p, int64_t all_threads) {
  const int64_t threads = ceil_div(all_threads, p.groups);
  const int64_t tiles = ceil_div(p.channels, kernel.tile_channels),
                big_tiles = ceil_div(p.big_channels, kernel.tile_big_channels);
  Parts best{};
  int64_t least = tiles * big_tiles + 1;
  // Of equal shares the widest in small's channels: what a thread packs of small serves all its tiles of big.
  for (int64_t across = threads; across >= 1; --across) {
    const int64_t down = threads / across;
    const int64_t share = ceil_div(tiles, down), big_share = ceil_div(big_tiles, across);
    if (share * big_share >= least) continue;
    least = share * big_share;
    const int64_t columns = ceil_div(big_tiles, big_share);
    const int64_t in_group = columns * ceil_div(tiles, share);
    best = {share * kernel.tile_channels, big_share * kernel.tile_big_channels, columns, in_group, p.groups * in_group};
  }
  return best;
}

const Kernel& kernel() {
  return gankernels::cpu::chosen<baseline::kernel, avx2::kernel, avx512::kernel>();
}

}  // namespace gankernels::convolution_weight_gradient::cpu

// What does not depend on the instruction set: the tiling, and the choice of the table.
#include "fold_conv_weight.h"
#include "isa_choice.h"

namespace gankernels::fold_conv_weight::cpu {
namespace {

constexpr int64_t kDirect = 512;  // channels of a tile that is neither gathered nor scattered
constexpr int64_t kLine = 16;     // rows: so many fp32 numbers fill a line of the cache

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Tiling tiling(const Problem& p) {
  Tiling t = p.to.output < p.to.input
                 ? Tiling{p.outputs, p.inputs, p.from.output, p.from.input, p.to.output, p.to.input, 0, 0, 0, 0, false}
                 : Tiling{p.inputs, p.outputs, p.from.input, p.from.output, p.to.input, p.to.output, 0, 0, 0, 0, false};
  t.direct = t.from_along == 1 && t.to_along == 1;
  t.block = t.direct ? kDirect : kBlock;
  const int64_t fitting = kGathered / (kBlock * p.from_taps * p.from_taps);
  t.rows = t.direct ? 1 : fitting < kLine ? fitting : fitting / kLine * kLine;
  if (t.rows > kBlock) t.rows = kBlock;
  t.blocks = ceil_div(t.along, t.block);
  t.tiles = t.blocks * ceil_div(t.across, t.rows);
  return t;
}

Pass pass(DType dtype) {
  return gankernels::cpu::chosen<baseline::table, avx2::table, avx512::table>()[static_cast<int>(dtype)];
}

}  // namespace gankernels::fold_conv_weight::cpu

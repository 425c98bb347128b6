// What does not depend on the instruction set: the tiling, the sums over tiles, and the choice of the table.
#include "bias_act.h"
#include "isa_choice.h"

namespace gankernels::bias_act::cpu {
namespace {

constexpr int64_t kTile = 32768;     // numbers in a tile; its operands stay in a core's second-level cache
constexpr int64_t kShortPlane = 32;  // numbers; below, what a plane costs by itself is more than its share of a row
constexpr int64_t kFewestRows = 32;  // of a tile, so that partial sums are few beside what they are sums of

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class A>
void sum_slots_of(const Problem& p, const A* partial, A* dbias, int64_t c_begin, int64_t c_end) {
  constexpr int64_t kBlock = 64;  // channels side by side, so that the loop over slots vectorises
  const int64_t slots = tiling(p).slots;
  for (int64_t c = c_begin; c < c_end; c += kBlock) {
    const int64_t width = c_end - c < kBlock ? c_end - c : kBlock;
    double sums[kBlock] = {};
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t k = 0; k < width; ++k) sums[k] += partial[s * p.channels + c + k];
    for (int64_t k = 0; k < width; ++k) dbias[c + k] = A(sums[k]);
  }
}

}  // namespace

Tiling tiling(const Problem& p) {
  if (p.size() == 0) return {};
  Tiling t = {};
  t.planes = p.inner >= kShortPlane;
  if (t.planes) {
    constexpr int64_t kAlign = 64;  // a piece begins where a vector does
    const int64_t pieces = ceil_div(p.inner, kTile);
    t.span = ceil_div(ceil_div(p.inner, pieces), kAlign) * kAlign;
    t.pieces = ceil_div(p.inner, t.span);
    t.slots = p.outer * t.pieces;
    const int64_t planes = p.outer * p.channels;
    t.rows = t.pieces > 1 ? 1 : kTile / p.inner < planes ? kTile / p.inner : planes;
    t.tiles = ceil_div(planes, t.rows) * t.pieces;
    return t;
  }
  t.width = p.channels * p.inner;
  const int64_t whole = kMostColumns / p.inner * p.inner;
  t.block = t.width < whole ? t.width : whole;
  t.blocks = ceil_div(t.width, t.block);
  t.rows = kTile / t.block > kFewestRows ? kTile / t.block : kFewestRows;
  t.slots = ceil_div(p.outer, t.rows);
  t.tiles = t.slots * t.blocks;
  return t;
}

void sum_slots(const Problem& p, const void* partial, void* dbias, int64_t c_begin, int64_t c_end) {
  if (p.dtype == DType::kFloat64)
    sum_slots_of(p, static_cast<const double*>(partial), static_cast<double*>(dbias), c_begin, c_end);
  else
    sum_slots_of(p, static_cast<const float*>(partial), static_cast<float*>(dbias), c_begin, c_end);
}

const Passes& passes(DType dtype, Activation activation) {
  return gankernels::cpu::chosen<baseline::table, avx2::table, avx512::table>()[int(dtype)][int(activation)];
}

}  // namespace gankernels::bias_act::cpu

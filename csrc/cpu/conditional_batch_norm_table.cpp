// What does not depend on the instruction set: the tiling, and the choice of the table.
#include "conditional_batch_norm.h"
#include "isa.h"

namespace gankernels::conditional_batch_norm::cpu {

// Bytes of one tensor in a tile: with its fellows it stays in a core's second-level cache.
constexpr int64_t kTileBytes = 128 << 10;

Tiling tiling(const Problem& p) {
  if (p.layout == Layout::kContiguous) return {p.n * p.c, p.n, p.n, p.l};
  const int64_t element = p.dtype == DType::kFloat64 ? 8 : p.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t bytes = p.c * p.l * element;
  if (bytes == 0) return {0, 0, 0, 0};
  const int64_t tiles = (bytes + kTileBytes - 1) / kTileBytes, at_most = tiles < p.l ? tiles : p.l;
  const int64_t rows = (p.l + at_most - 1) / at_most, splits = (p.l + rows - 1) / rows;
  return {p.n * splits, 0, p.n * splits, rows};
}

int64_t rows_of_slot(const Problem& p, const Tiling& t, int64_t slot) {
  if (p.layout == Layout::kContiguous) return p.l;
  const int64_t row = slot % (t.slots / p.n) * t.rows_of_tile;
  return row + t.rows_of_tile < p.l ? t.rows_of_tile : p.l - row;
}

const Passes& passes(DType dtype, Activation activation) {
  const auto pick = [&](const Table& table) -> const Passes& { return table[int(dtype)][int(activation)]; };
#if defined(GANKERNELS_X86)
  switch (gankernels::cpu::isa()) {
    case gankernels::cpu::Isa::kAvx512:
      return pick(avx512::table);
    case gankernels::cpu::Isa::kAvx2:
      return pick(avx2::table);
    default:
      break;
  }
#endif
  return pick(baseline::table);
}

}  // namespace gankernels::conditional_batch_norm::cpu

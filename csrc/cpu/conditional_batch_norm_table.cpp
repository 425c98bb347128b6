// What does not depend on the instruction set: the tiling, the samples of a batch, and the choice of the table.
#include "conditional_batch_norm.h"
#include "isa_choice.h"

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

namespace {

// Moves pointers to where a sample's numbers begin.
struct Sample {
  const Problem& batch;
  int64_t n;
  int64_t element = batch.dtype == DType::kFloat64 ? 8 : batch.dtype == DType::kFloat32 ? 4 : 2;

  Problem problem() const {
    Problem p = batch;
    p.n = 1, p.per_sample = false, p.batch = batch.n;
    return p;
  }
  template <class Void>
  Void* pixels(Void* batch_) const {
    return move(batch_, n * batch.c * batch.l * element);
  }
  template <class Void>
  Void* row(Void* batch_) const {
    return move(batch_, n * batch.c * (element == 8 ? 8 : 4));
  }

 private:
  static const void* move(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
  static void* move(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }
};

}  // namespace

Forward sample_of(const Forward& a, int64_t n) {
  const Sample s{a.problem, n};
  return {s.problem(), s.pixels(a.x), s.row(a.gain), s.row(a.bias), s.row(a.mean), s.row(a.var), s.pixels(a.y)};
}

Backward sample_of(const Backward& a, int64_t n) {
  const Sample s{a.problem, n};
  return {s.problem(),   s.pixels(a.dy), s.pixels(a.x),  s.row(a.gain),  s.row(a.bias),
          s.row(a.mean), s.row(a.var),   s.pixels(a.dx), s.row(a.dgain), s.row(a.dbias)};
}

BackwardBackward sample_of(const BackwardBackward& a, int64_t n) {
  const Sample s{a.problem, n};
  return {s.problem(),     s.pixels(a.ddx), s.row(a.ddgain), s.row(a.ddbias), s.pixels(a.dy),
          s.pixels(a.x),   s.row(a.gain),   s.row(a.bias),   s.row(a.mean),   s.row(a.var),
          s.pixels(a.ddy), s.pixels(a.dx),  s.row(a.dgain)};
}

int64_t rows_of_slot(const Problem& p, const Tiling& t, int64_t slot) {
  if (p.layout == Layout::kContiguous) return p.l;
  const int64_t row = slot % (t.slots / p.n) * t.rows_of_tile;
  return row + t.rows_of_tile < p.l ? t.rows_of_tile : p.l - row;
}

const Passes& passes(DType dtype, Activation activation) {
  return gankernels::cpu::chosen<baseline::table, avx2::table, avx512::table>()[int(dtype)][int(activation)];
}

}  // namespace gankernels::conditional_batch_norm::cpu

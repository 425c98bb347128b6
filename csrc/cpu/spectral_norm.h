// The CPU's passes of spectral normalisation over one weight, each over a range, so that the caller can spread it over
// threads. W, a and dW have the weight's element type, y and dy the output's; all else is in the accumulation type.
#pragma once

#include "../spectral_norm.h"

namespace gankernels::spectral_norm::cpu {

// Whether a weight is so large that its results should not displace others from the caches.
GK_HOST_DEVICE bool is_large(const Matrix& m) {
  return m.size() >= 1 << 20;
}

// <a, dy>, <a, u v^T> and <dy, W>; order 1 needs the last alone.
struct Products {
  double a_dy = 0, a_uv = 0, dy_w = 0;
};

// Ranges are of runs, or of numbers where that is said. `along` is [columns], `across` [rows * inner], `sums`
// [columns].
struct Passes {
  // across = W along and, with the same runs while they are in the cache, sums = W^T across of the runs of the range.
  // That across is not yet normalised does not matter: the norm is a factor of the sums, too.
  void (*iterate)(const Matrix&, const void* w, const void* along, void* across, void* sums, int64_t, int64_t);
  void (*across)(const Matrix&, const void* w, const void* along, void* across, int64_t, int64_t);
  void (*along)(const Matrix&, const void* w, const void* across, void* sums, int64_t, int64_t);
  // y = W / sigma, for a range of numbers; `large` is is_large of the weight.
  void (*scale)(const void* w, double sigma, bool large, void* y, int64_t, int64_t);

  Products (*backward_sums)(const void* dy, const void* w, int64_t, int64_t);  // for a range of numbers
  void (*backward)(const Matrix&, const Terms<double>&, const void* dy, const void* along, const void* across, void* dw,
                   int64_t, int64_t);

  Products (*backward_backward_sums)(const Matrix&, const void* a, const void* dy, const void* w, const void* along,
                                     const void* across, int64_t, int64_t);
  void (*backward_backward)(const Matrix&, const Terms<double>&, const void* a, const void* dy, const void* w,
                            const void* along, const void* across, void* ddy, void* dw, int64_t, int64_t);
};

// The element types of weight and output that there are passes for: equal ones, and 16-bit outputs of fp32 weights.
bool supported(DType weight, DType output);

// Built for the instruction set that gankernels::cpu::isa() names.
const Passes& passes(DType weight, DType output);

// One table for each instruction set; spectral_norm.cpp makes them.
inline constexpr int kTypes = 6;
using Table = Passes[kTypes];
namespace baseline {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}

}  // namespace gankernels::spectral_norm::cpu

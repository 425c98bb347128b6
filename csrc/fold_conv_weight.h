// The weight of a convolution behind nearest x2, or in front of a 2x2 mean, as that of one convolution of stride 2, and
// the transpose of this map: the formulas, and what the launchers take. No torch headers. Derivation: docs/ops.
//
//   folded[t, s] = scale (sum of w[k, l] over k in {u(t) - 1, u(t)}, l in {u(s) - 1, u(s)} that exist)
//
// w is K x K with K odd, folded K+1 x K+1. Up: u(t) = K - t, scale 1. Down: u(t) = t, scale 1/4.
// Its transpose has the same form: w[k, l] is a sum over t in {u(k) - 1, u(k)}, u(k) = K - k up and k + 1 down.
//
// From K to K taps (up, on a CPU alone) nothing is added: the taps turn round, u(t) = K - 1 - t, as the channels do.
#pragma once

#include "common.h"

namespace gankernels::fold_conv_weight {

inline constexpr int kMostTaps = 16;  // K + 1, a side

// From one to the next, in elements. The taps of a channel pair are [K, K], a row behind the other.
struct Strides {
  int64_t output, input, tap;
};

struct Problem {
  int64_t outputs, inputs;  // channels of the convolution
  int from_taps, to_taps;   // a side: K and K+1 fold, K+1 and K transpose, K and K turn round
  bool up;
  DType dtype;
  Strides from, to;
};

struct Args {
  Problem problem;
  const void* from;
  void* to;
};

// [O, I, taps, taps], or with `swapped` [I, O, taps, taps], which a transposed convolution takes.
inline Strides strides_of(int64_t outputs, int64_t inputs, int taps, bool swapped, Layout layout) {
  const int64_t area = int64_t(taps) * taps, inner = swapped ? outputs : inputs;
  const int64_t step = layout == Layout::kChannelsLast ? 1 : area, tap = layout == Layout::kChannelsLast ? inner : 1;
  return swapped ? Strides{step, inner * area, tap} : Strides{inner * area, step, tap};
}

// u(t), of a result's row or column t.
GK_HOST_DEVICE int last_source(const Problem& p, int t) {
  if (p.from_taps == p.to_taps) return p.to_taps - 1 - t;
  if (p.up) return (p.from_taps > p.to_taps ? p.to_taps : p.from_taps) - t;
  return p.from_taps > p.to_taps ? t + 1 : t;
}

// Up, an output pixel takes a part of the taps; down, it is a mean of four.
GK_HOST_DEVICE double scale(const Problem& p) {
  return p.up ? 1 : 0.25;
}

// Whether neighbours in the result's memory are outputs; if not, they are inputs.
GK_HOST_DEVICE bool along_outputs(const Problem& p) {
  return p.to.input != 1 && (p.to.output == 1 || p.from.output == 1);
}

// Asynchronous on `stream` (a cudaStream_t). Returns a cudaError_t.
namespace cuda {
int fold(const Args& args, void* stream);
}  // namespace cuda

}  // namespace gankernels::fold_conv_weight

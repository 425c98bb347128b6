// The weight gradient of a convolution on the CPU, without columns. All tensors are channels_last:
//
//   dw[c, k, l, c'] = sum over n, i, j of small[n, i, j, c] big[n, s i + d k - p, s j + d l - p, c']
//
// with c' over the channels of big in c's group.
// gankernels/ops/_convolution_gemm.py names `small` and `big`. Each tap is a product small^T big over the pixels that
// the tap sees, so a tile of dw [channels of small, channels of big] stays in registers while pixels go by.
#pragma once

#include "convolution_axis.h"

namespace gankernels::convolution_weight_gradient::cpu {

using convolution::Axis;

// Channels are those of one group. An axis has small as `out`, big as `in`.
struct Problem {
  int64_t samples, groups, channels, big_channels;
  Axis rows, columns;
};

struct Args {
  Problem problem;
  const void *small, *big;
  float* dw;
};

// dw cut into parts, each [channels, big_channels] of a group or less for all taps: what a thread takes some of. A
// group has `in_group` of them, `across` side by side. The order in which pixels are added does not depend on it.
struct Parts {
  int64_t channels, big_channels, across, in_group, count;
};

using Pass = void (*)(const Args&, const Parts&, int64_t part_begin, int64_t part_end);

// Of one instruction set; by the dtype of small and big, without one for fp64.
struct Kernel {
  int64_t tile_channels, tile_big_channels;
  Pass passes[4];
};
Parts parts(const Kernel& kernel, const Problem& problem, int64_t threads);

// Built for the instruction set that gankernels::cpu::isa() names.
const Kernel& kernel();

// convolution_weight_gradient.cpp makes them.
namespace baseline {
extern const Kernel kernel;
}
namespace avx2 {
extern const Kernel kernel;
}
namespace avx512 {
extern const Kernel kernel;
}

}  // namespace gankernels::convolution_weight_gradient::cpu

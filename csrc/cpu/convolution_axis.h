// What the kernels of convolutions know of one.
#pragma once

#include "../common.h"

namespace gankernels::convolution {

// Along the rows, or along the columns: out[i] sees in[s i + d k - p] by its tap k. The padding may be negative.
struct Axis {
  int64_t out, in, taps, stride, padding, dilation;
};

}  // namespace gankernels::convolution

// A convolution on the CPU without columns and without packed pictures. All tensors are channels_last:
//
//   y[n, i, j, o] = bias[o] + sum over k, l, c of weight[o, c, k, l] x[n, s i + d k - p, s j + d l - p, c]
//
// with c over the channels of o's group. Each tap is a product of the pixels that it sees with a matrix [inputs,
// outputs], so a tile of y [pixels, outputs] stays in registers while the taps and their channels go by.
#pragma once

#include "convolution_axis.h"

namespace gankernels::direct_convolution::cpu {

using convolution::Axis;

// Inputs and outputs are those of one group.
struct Problem {
  int64_t samples, groups, inputs, outputs;
  Axis rows, columns;
};

// Where the numbers of a weight are: steps from one group, output, ... to the next.
struct Weight {
  const float* data;
  int64_t group, output, input, row, column;
};

// `panels` is what Kernel::pack makes of a weight; bias [groups outputs] may be null.
struct Args {
  Problem problem;
  const float *x, *panels, *bias;
  float* y;
};

// Of one instruction set. A weight is packed into panels [KH, KW, inputs, columns], with zeros behind a group's last
// output: outputs of one group, or all those of two, where they fill half a panel.
struct Kernel {
  int64_t columns;
  int64_t (*panels)(const Problem& problem);
  // Makes panels [begin, end) of those that begin at `to`.
  void (*pack)(const Problem& problem, const Weight& weight, float* to, int64_t begin, int64_t end);
  // Rows [begin, end) of y, those of all samples. The bits do not depend on how rows are cut.
  void (*pass)(const Args& args, int64_t begin, int64_t end);
};

int64_t panel_size(const Kernel& kernel, const Problem& problem);

// Built for the instruction set that gankernels::cpu::isa() names.
const Kernel& kernel();

// direct_convolution.cpp makes them.
namespace baseline {
extern const Kernel kernel;
}
namespace avx2 {
extern const Kernel kernel;
}
namespace avx512 {
extern const Kernel kernel;
}

}  // namespace gankernels::direct_convolution::cpu

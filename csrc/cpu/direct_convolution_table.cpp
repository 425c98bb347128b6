// What does not depend on the instruction set: the weight's panels, and the choice of the kernel.
#include "direct_convolution.h"

#include <algorithm>

#include "isa_choice.h"

namespace gankernels::direct_convolution::cpu {
namespace {

int64_t across(const Kernel& kernel, const Problem& p) {
  return (p.outputs + kernel.columns - 1) / kernel.columns;
}

}  // namespace

int64_t panels(const Kernel& kernel, const Problem& p) {
  return p.groups * across(kernel, p);
}

int64_t panel_size(const Kernel& kernel, const Problem& p) {
  return p.rows.taps * p.columns.taps * p.inputs * kernel.columns;
}

void pack(const Kernel& kernel, const Problem& p, const Weight& w, float* to, int64_t begin, int64_t end) {
  const int64_t columns = kernel.columns, in_group = across(kernel, p);
  to += begin * panel_size(kernel, p);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel % in_group * columns, count = std::min(columns, p.outputs - first);
    const float* from = w.data + panel / in_group * w.group + first * w.output;
    for (int64_t k = 0; k < p.rows.taps; ++k)
      for (int64_t l = 0; l < p.columns.taps; ++l) {
        const float* input = from + k * w.row + l * w.column;
        for (int64_t c = 0; c < p.inputs; ++c, input += w.input, to += columns) {
          for (int64_t o = 0; o < count; ++o) to[o] = input[o * w.output];
          std::fill(to + count, to + columns, 0.0f);
        }
      }
  }
}

const Kernel& kernel() {
  return gankernels::cpu::chosen<baseline::kernel, avx2::kernel, avx512::kernel>();
}

}  // namespace gankernels::direct_convolution::cpu

// What does not depend on the instruction set: the size of a panel, and the choice of the kernel.
#include "direct_convolution.h"
#include "isa_choice.h"

namespace gankernels::direct_convolution::cpu {

int64_t panel_size(const Kernel& kernel, const Problem& p) {
  return p.rows.taps * p.columns.taps * p.inputs * kernel.columns;
}

const Kernel& kernel() {
  return gankernels::cpu::chosen<baseline::kernel, avx2::kernel, avx512::kernel>();
}

}  // namespace gankernels::direct_convolution::cpu

// The one choice among the builds of an op's kernels, for the files that are built once: *_table.cpp.
#pragma once

#include "isa.h"

namespace gankernels::cpu {

// Of one object as each instruction set has it, that of the set that runs. Off x86 that is always the baseline's, and
// the two others, which are not built there, are named only.
template <const auto& kBaseline, const auto& kAvx2, const auto& kAvx512>
const auto& chosen() {
#if defined(GANKERNELS_X86)
  switch (isa()) {
    case Isa::kAvx512:
      return kAvx512;
    case Isa::kAvx2:
      return kAvx2;
    default:
      break;
  }
#endif
  return kBaseline;
}

}  // namespace gankernels::cpu

// What does not depend on the instruction set: the choice of the passes.
#include "isa.h"
#include "spectral_norm.h"

namespace gankernels::spectral_norm::cpu {
namespace {

int index_of(DType weight, DType output) {
  if (weight == output) return static_cast<int>(weight);
  if (weight == DType::kFloat32 && output == DType::kBFloat16) return 4;
  if (weight == DType::kFloat32 && output == DType::kFloat16) return 5;
  return -1;
}

}  // namespace

bool supported(DType weight, DType output) {
  return index_of(weight, output) >= 0;
}

const Passes& passes(DType weight, DType output) {
  const int index = index_of(weight, output);
#if defined(GANKERNELS_X86)
  switch (gankernels::cpu::isa()) {
    case gankernels::cpu::Isa::kAvx512:
      return avx512::table[index];
    case gankernels::cpu::Isa::kAvx2:
      return avx2::table[index];
    default:
      break;
  }
#endif
  return baseline::table[index];
}

}  // namespace gankernels::spectral_norm::cpu

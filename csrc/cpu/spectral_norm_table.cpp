// What does not depend on the instruction set: the choice of the passes.
#include "isa_choice.h"
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
  return gankernels::cpu::chosen<baseline::table, avx2::table, avx512::table>()[index_of(weight, output)];
}

}  // namespace gankernels::spectral_norm::cpu

#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace gankernels::cpu {
namespace {

// __builtin_cpu_supports asks cpuid, and xgetbv for what the operating system saves.
bool supported(Isa isa) {
#if defined(GANKERNELS_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::kBaseline;
}

Isa detect() {
  const char* limit = std::getenv("GANKERNELS_CPU_ISA");
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (limit && std::strcmp(limit, name(isa)) == 0) limit = nullptr;
    if (!limit && supported(isa)) return isa;
  }
  return Isa::kBaseline;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace gankernels::cpu

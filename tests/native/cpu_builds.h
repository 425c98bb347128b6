// What the tests of CPU kernels share: the builds of the kernels, of which a process checks the one that it is told.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../csrc/cpu/isa.h"
#include "check.h"

// What CTest takes for skipped.
constexpr int kSkipped = 77;

// The exit code of `test <build>`, after `check(table)` with the table of that build. Off x86 two are named only.
template <const auto& kBaseline, const auto& kWide, const auto& kAvx2, const auto& kAvx512, class Check>
int check_build(int count, char** arguments, const Check& check) {
  using gankernels::cpu::Isa;
  const struct {
    const char* name;
    decltype(&kBaseline) table;
    Isa needs;
  } builds[] = {
      {"baseline", &kBaseline, Isa::kBaseline},
#if defined(GANKERNELS_X86)
      {"wide", &kWide, Isa::kAvx2},
      {"avx2", &kAvx2, Isa::kAvx2},
      {"avx512", &kAvx512, Isa::kAvx512},
#else
      {"wide", &kWide, Isa::kBaseline},
#endif
  };
  unsetenv("GANKERNELS_CPU_ISA");  // the processor alone decides what runs
  const std::string name = count == 2 ? arguments[1] : "";
  for (const auto& build : builds) {
    if (name != build.name) continue;
    if (gankernels::cpu::isa() < build.needs) {
      std::printf("skipped: this processor has no %s\n", gankernels::cpu::name(build.needs));
      return kSkipped;
    }
    check(*build.table);
    std::printf("%s: %d failures\n", build.name, failures);
    return failures ? 1 : 0;
  }
  std::fprintf(stderr, "usage: %s baseline|wide|avx2|avx512\n", arguments[0]);
  return 2;
}

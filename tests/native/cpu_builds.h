// What the tests of CPU kernels share: the builds of the kernels, of which a process checks the one that it is told.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../csrc/cpu/isa.h"
#include "check.h"

// What CTest takes for skipped.
constexpr int kSkipped = 77;

template <class Table>
struct Build {
  const char* name;
  const Table* table;
  gankernels::cpu::Isa needs;
};

// The exit code of `test <build>`, after `check(table)`.
template <class Table, size_t Count, class Check>
int check_build(int count, char** arguments, const Build<Table> (&builds)[Count], const Check& check) {
  unsetenv("GANKERNELS_CPU_ISA");  // the processor alone decides what runs
  const std::string name = count == 2 ? arguments[1] : "";
  for (const Build<Table>& build : builds) {
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

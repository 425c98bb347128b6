// The CPU kernel of fold_conv_weight, one instruction set a run. Usage: test_fold_conv_weight_cpu
// baseline|wide|avx2|avx512
#include <cstdlib>

#include "../../csrc/cpu/fold_conv_weight.h"
#include "../../csrc/cpu/isa.h"
#include "fold_conv_weight_checks.h"

namespace gankernels::fold_conv_weight::cpu::wide {
extern const Table table;
}

namespace {

namespace cpu = fold_conv_weight::cpu;

constexpr int kSkipped = 77;

struct Cpu {
  const cpu::Table& table;

  // In one range, or tile by tile from the end.
  void run(const fold_conv_weight::Args& args, bool reversed) const {
    const cpu::Pass pass = table[static_cast<int>(args.problem.dtype)];
    const int64_t tiles = cpu::tiling(args.problem).tiles;
    if (!reversed) return pass(args, 0, tiles);
    for (int64_t tile = tiles; tile-- > 0;) pass(args, tile, tile + 1);
  }
};

struct Build {
  const char* name;
  const cpu::Table* table;
  gankernels::cpu::Isa needs;
};

const Build kBuilds[] = {
    {"baseline", &cpu::baseline::table, gankernels::cpu::Isa::kBaseline},
#if defined(GANKERNELS_X86)
    {"wide", &cpu::wide::table, gankernels::cpu::Isa::kAvx2},
    {"avx2", &cpu::avx2::table, gankernels::cpu::Isa::kAvx2},
    {"avx512", &cpu::avx512::table, gankernels::cpu::Isa::kAvx512},
#else
    {"wide", &cpu::wide::table, gankernels::cpu::Isa::kBaseline},
#endif
};

}  // namespace

int main(int count, char** arguments) {
  unsetenv("GANKERNELS_CPU_ISA");  // the processor alone decides what runs
  const std::string name = count == 2 ? arguments[1] : "";
  for (const Build& build : kBuilds) {
    if (name != build.name) continue;
    if (gankernels::cpu::isa() < build.needs) {
      std::printf("skipped: this processor has no %s\n", gankernels::cpu::name(build.needs));
      return kSkipped;
    }
    const Cpu device{*build.table};
    check_all<float>(device);
    check_all<double>(device);
    check_all<__nv_bfloat16>(device);
    check_all<__half>(device);
    std::printf("%s: %d failures\n", build.name, failures);
    return failures ? 1 : 0;
  }
  std::fprintf(stderr, "usage: %s baseline|wide|avx2|avx512\n", arguments[0]);
  return 2;
}

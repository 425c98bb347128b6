// The CPU kernel of fold_conv_weight, one instruction set a run. Usage: test_fold_conv_weight_cpu
// baseline|wide|avx2|avx512

#include "../../csrc/cpu/fold_conv_weight.h"
#include "cpu_builds.h"
#include "fold_conv_weight_checks.h"

namespace gankernels::fold_conv_weight::cpu::wide {
extern const Table table;
}

namespace {

namespace cpu = fold_conv_weight::cpu;

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

}  // namespace

int main(int count, char** arguments) {
  using namespace gankernels::fold_conv_weight::cpu;
  return check_build<baseline::table, wide::table, avx2::table, avx512::table>(count, arguments, [](const auto& table) {
    const Cpu device{table};
    check_all<float>(device);
    check_all<double>(device);
    check_all<__nv_bfloat16>(device);
    check_all<__half>(device);
    check_all_turned<float>(device);
    check_all_turned<double>(device);
    check_all_turned<__nv_bfloat16>(device);
  });
}

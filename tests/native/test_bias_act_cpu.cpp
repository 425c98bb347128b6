// The CPU kernels of bias_act, one instruction set a run. Usage: test_bias_act_cpu baseline|wide|avx2|avx512
#include <algorithm>

#include "../../csrc/cpu/bias_act.h"
#include "bias_act_checks.h"
#include "cpu_builds.h"

namespace gankernels::bias_act::cpu::wide {
extern const Table table;
}

namespace {

namespace cpu = bias_act::cpu;

// Calls work(begin, end) for ranges that make up [0, size): one, or one, two, three, ... from the end.
template <class Work>
void in_ranges(int64_t size, bool reversed, Work&& work) {
  if (!reversed && size > 0) work(int64_t(0), size);
  for (int64_t length = 1; reversed && size > 0; size -= std::min(size, length++))
    work(std::max<int64_t>(size - length, 0), size);
}

class Cpu {
 public:
  explicit Cpu(const cpu::Table& table) : table_(table) {}

  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    const bias_act::Problem& p = arrays.problem;
    const cpu::Passes& pass = table_[static_cast<int>(p.dtype)][static_cast<int>(p.activation)];
    const cpu::Tiling t = cpu::tiling(p);
    const auto forward = arrays.forward();
    in_ranges(t.tiles, reversed, [&](int64_t begin, int64_t end) { pass.forward(forward, begin, end); });
    const auto with_sums = [&](const auto& args, auto&& run) {
      Guarded<AccumulatorOf<T>> partial(t.slots * p.channels);
      in_ranges(t.tiles, reversed, [&](int64_t begin, int64_t end) { run(args, partial.data(), begin, end); });
      if (args.dbias)
        in_ranges(p.channels, reversed,
                  [&](int64_t begin, int64_t end) { cpu::sum_slots(p, partial.data(), args.dbias, begin, end); });
      CHECK(partial.intact(), "%s", arrays.k.name().c_str());
    };
    with_sums(arrays.backward(), pass.backward);
    with_sums(arrays.backward_backward(), pass.backward_backward);
    // Without sums where they are not wanted: to the same bits.
    if (arrays.smooth()) return;
    Guarded<T> dx(arrays.k.size(), arrays.k.misalignment);
    bias_act::Backward args = arrays.backward();
    args.dx = dx.data(), args.dbias = nullptr;
    in_ranges(t.tiles, reversed, [&](int64_t begin, int64_t end) { pass.backward(args, nullptr, begin, end); });
    CHECK(std::memcmp(dx.data(), arrays.dx->data(), dx.size() * sizeof(T)) == 0 && dx.intact(), "%s",
          arrays.k.name().c_str());
  }

 private:
  const cpu::Table& table_;
};

template <class T>
void check_all(const Cpu& device) {
  check_shapes<T>(device);
  // Several tiles, pieces of planes, and blocks of columns, whose last are not full.
  for (Activation activation : {Activation::kLeakyRelu, Activation::kTanh}) {
    check_case<T>(device, {2, 2, 70001, activation, false, true, 0});
    check_case<T>(device, {70, 2100, 1, activation, false, true, 1});
    check_case<T>(device, {40, 700, 3, activation, false, true, 0});
    check_case<T>(device, {30001, 3, 1, activation, false, true, 0});
  }
  check_special_values<T>(device);
}

}  // namespace

int main(int count, char** arguments) {
  using namespace gankernels::bias_act::cpu;
  return check_build<baseline::table, wide::table, avx2::table, avx512::table>(count, arguments, [](const auto& table) {
    const Cpu device(table);
    check_all<float>(device);
    check_all<double>(device);
    check_all<__nv_bfloat16>(device);
    check_all<__half>(device);
  });
}

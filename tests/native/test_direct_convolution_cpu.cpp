// The CPU's direct convolution, one instruction set a run, held against the definition.
// Usage: test_direct_convolution_cpu baseline|wide|avx2|avx512
#include <cstring>

#include "../../csrc/cpu/direct_convolution.h"
#include "convolutions.h"
#include "cpu_builds.h"

namespace cpu = gankernels::direct_convolution::cpu;

namespace gankernels::direct_convolution::cpu::wide {
extern const Kernel kernel;
}

namespace {

const Case<cpu::Problem> kCases[] = {
    {"one of everything", {1, 1, 1, 1, axis(1, 1), axis(1, 1)}},
    {"3x3 in groups of 16", {3, 3, 16, 16, axis(9, 3, 1, 1), axis(8, 3, 1, 1)}},
    {"3x3 in groups of odd numbers", {2, 5, 3, 7, axis(5, 3, 1, 1), axis(7, 3, 1, 1)}},
    {"groups of 4, two in a panel of 8", {2, 3, 4, 4, axis(5, 3, 1, 1), axis(4, 3, 1, 1)}},
    {"groups of 8, two in a panel of 16", {2, 5, 6, 8, axis(5, 3, 1, 1), axis(4, 3, 1, 1)}},
    {"groups of 16, two in a panel of 32", {2, 4, 16, 16, axis(5, 2, 1, 1), axis(4, 3, 2, 1)}},
    {"outputs past a panel", {2, 2, 5, 35, axis(4, 3, 1, 1), axis(4, 3, 1, 1)}},
    {"4x4, stride 2", {3, 2, 8, 32, axis(10, 4, 2, 1), axis(12, 4, 2, 1)}},
    {"stride 3, pixels that no tap sees", {2, 1, 4, 17, axis(11, 2, 3), axis(14, 2, 3)}},
    {"stride and dilation that share no phase", {2, 1, 5, 33, axis(17, 3, 2, 2, 3), axis(16, 3, 3, 4, 2)}},
    {"asymmetric", {2, 1, 6, 16, axis(8, 1, 1, 0), axis(11, 5, 2, 2)}},
    {"1x1", {5, 1, 25, 31, axis(6, 1), axis(5, 1)}},
    {"1x1, stride 2", {2, 1, 3, 15, axis(7, 1, 2), axis(8, 1, 2)}},
    {"padding beyond the picture, outputs that see nothing of it", {2, 1, 4, 8, axis(2, 2, 1, 5), axis(1, 3, 2, 4)}},
    {"negative padding, as of an input gradient", {2, 2, 6, 16, {5, 9, 2, 1, -3, 1}, {6, 9, 1, 1, -2, 1}}},
    {"a kernel larger than the picture", {2, 1, 9, 18, axis(3, 7, 1, 3), axis(2, 7, 1, 3)}},
    {"one pixel, the kernel once", {37, 1, 10, 20, axis(4, 4), axis(4, 4)}},
    {"a block across samples", {9, 2, 4, 19, axis(9, 3, 1, 1), axis(11, 3, 1, 1)}},
    {"rows wider than a block", {1, 1, 5, 16, axis(3, 3, 1, 1), axis(301, 3, 1, 1)}},
    {"so many inputs that a block is a row", {2, 1, 9000, 6, axis(2, 1), axis(9, 1)}},
};

std::vector<Bounded> define(const cpu::Problem& p, const Guarded<float>& x, const Guarded<float>& weight,
                            const float* bias) {
  std::vector<Bounded> y(p.samples * p.rows.out * p.columns.out * p.groups * p.outputs);
  const int64_t taps = p.rows.taps * p.columns.taps, outputs = p.groups * p.outputs;
  for (size_t at = 0; at < y.size(); ++at) {
    const int64_t o = static_cast<int64_t>(at) % outputs, j = static_cast<int64_t>(at) / outputs % p.columns.out,
                  i = static_cast<int64_t>(at) / outputs / p.columns.out % p.rows.out,
                  n = static_cast<int64_t>(at) / outputs / p.columns.out / p.rows.out;
    y[at] = bias ? bias[o] : 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t row = p.rows.stride * i + p.rows.dilation * (tap / p.columns.taps) - p.rows.padding,
                    column = p.columns.stride * j + p.columns.dilation * (tap % p.columns.taps) - p.columns.padding;
      if (row < 0 || row >= p.rows.in || column < 0 || column >= p.columns.in) continue;
      const float* pixel =
          x.data() + (((n * p.rows.in + row) * p.columns.in + column) * p.groups + o / p.outputs) * p.inputs;
      for (int64_t c = 0; c < p.inputs; ++c)
        y[at] += double(pixel[c]) * double(weight[(o * p.inputs + c) * taps + tap]);
    }
  }
  return y;
}

void check_case(const cpu::Kernel& kernel, const Case<cpu::Problem>& k) {
  const cpu::Problem& p = k.problem;
  const int64_t taps = p.rows.taps * p.columns.taps, rows = p.samples * p.rows.out, outputs = p.groups * p.outputs;
  // 8 bytes past a line of the cache.
  Guarded<float> x(p.samples * p.rows.in * p.columns.in * p.groups * p.inputs, 2), weight(outputs * p.inputs * taps),
      turned(weight.size()), bias(outputs, 1), y(rows * p.columns.out * outputs, 1), in_parts(y.size(), 2);
  fill({&x, &weight, &bias}, x.size());

  // The weight as [outputs, inputs, KH, KW], and as [KH, KW, inputs, outputs] with its taps in reverse.
  const int64_t panels = kernel.panels(p), panel = cpu::panel_size(kernel, p);
  Guarded<float> packed(panels * panel), again(packed.size());
  kernel.pack(p, {weight.data(), p.outputs * p.inputs * taps, p.inputs * taps, taps, p.columns.taps, 1}, packed.data(),
              0, panels);
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t c = 0; c < p.inputs; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        turned[((taps - 1 - tap) * p.inputs + c) * outputs + o] = weight[(o * p.inputs + c) * taps + tap];
  const int64_t tap = p.inputs * outputs;
  for (int64_t i = panels; i-- > 0;)
    kernel.pack(p, {turned.data() + (taps - 1) * tap, p.outputs, 1, outputs, -p.columns.taps * tap, -tap}, again.data(),
                i, i + 1);
  CHECK(std::memcmp(packed.data(), again.data(), packed.size() * sizeof(float)) == 0, "%s", k.what);

  for (const float* b : {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
    kernel.pass({p, x.data(), packed.data(), b, y.data()}, 0, rows);
    // As by many threads of which the last come first: not a bit may change.
    for (int64_t count : {3, 7}) {
      std::memset(in_parts.data(), 0xff, in_parts.size() * sizeof(float));
      for (int64_t i = count; i-- > 0;)
        kernel.pass({p, x.data(), packed.data(), b, in_parts.data()}, rows * i / count, rows * (i + 1) / count);
      CHECK(std::memcmp(y.data(), in_parts.data(), y.size() * sizeof(float)) == 0, "%s", k.what);
    }
    check_sums(k.what, y, define(p, x, weight, b), taps * p.inputs + 1);
  }
  CHECK(y.intact() && in_parts.intact() && packed.intact() && again.intact(), "%s", k.what);
}

}  // namespace

int main(int count, char** arguments) {
  using namespace gankernels::direct_convolution::cpu;
  const auto check = [](const Kernel& kernel) {
    for (const auto& k : kCases) check_case(kernel, k);
  };
  return check_build<baseline::kernel, wide::kernel, avx2::kernel, avx512::kernel>(count, arguments, check);
}

// The CPU's weight gradient of convolutions, one instruction set a run, held against the definition in double.
// Usage: test_convolution_weight_gradient_cpu baseline|wide|avx2|avx512
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/convolution_weight_gradient.h"
#include "cpu_builds.h"
#include "cuda_shim/guarded.h"
#include "dtypes.h"

namespace cpu = gankernels::convolution_weight_gradient::cpu;
using cuda_shim::Guarded;

namespace gankernels::convolution_weight_gradient::cpu::wide {
extern const Kernel kernel;
}

namespace {

struct Case {
  const char* what;
  cpu::Problem problem;
};

// The size of small along an axis, as a convolution of big has it.
cpu::Axis axis(int64_t big, int64_t taps, int64_t stride = 1, int64_t padding = 0, int64_t dilation = 1) {
  return {(big + 2 * padding - dilation * (taps - 1) - 1) / stride + 1, big, taps, stride, padding, dilation};
}

const Case kCases[] = {
    {"one of everything", {1, 1, 1, 1, axis(1, 1), axis(1, 1)}},
    {"3x3", {2, 1, 13, 35, axis(9, 3, 1, 1), axis(7, 3, 1, 1)}},
    {"4x4, stride 2", {3, 1, 12, 32, axis(10, 4, 2, 1), axis(12, 4, 2, 1)}},
    {"stride 3, pixels that no tap sees", {2, 1, 7, 17, axis(11, 2, 3), axis(14, 2, 3)}},
    {"stride and dilation that share no phase", {2, 1, 5, 33, axis(17, 3, 2, 2, 3), axis(16, 3, 3, 4, 2)}},
    {"asymmetric", {2, 1, 6, 16, axis(8, 1, 1, 0), axis(11, 5, 2, 2)}},
    {"1x1", {5, 1, 25, 31, axis(6, 1), axis(5, 1)}},
    {"1x1, stride 2", {2, 1, 3, 15, axis(7, 1, 2), axis(8, 1, 2)}},
    {"padding beyond the picture, taps that see nothing of it", {2, 1, 4, 8, axis(2, 2, 1, 5), axis(1, 3, 2, 4)}},
    {"a kernel larger than the picture", {2, 1, 9, 18, axis(3, 7, 1, 3), axis(2, 7, 1, 3)}},
    {"one pixel, the kernel once", {37, 1, 10, 20, axis(4, 4), axis(4, 4)}},
    {"an output padding: rows behind all taps", {2, 1, 6, 16, {5, 11, 3, 2, 1, 1}, {4, 10, 3, 2, 1, 1}}},
    {"a block across samples", {9, 1, 7, 19, axis(9, 3, 1, 1), axis(11, 3, 1, 1)}},
    {"groups of a tile and some", {3, 4, 16, 16, axis(9, 3, 1, 1), axis(8, 3, 1, 1)}},
    {"groups of odd numbers, stride 2", {2, 3, 7, 19, axis(10, 4, 2, 1), axis(9, 4, 2, 1)}},
    {"groups of one channel", {2, 5, 1, 1, axis(6, 3, 1, 1), axis(5, 3, 1, 1)}},
    {"rows wider than a block", {1, 1, 5, 16, axis(3, 3, 1, 1), axis(301, 3, 1, 1)}},
    {"more channels than are packed at a time", {2, 1, 391, 18, axis(16, 1), axis(16, 2, 1, 1)}},
};

// dw in double, and the same over absolute values.
template <class T>
void define(const cpu::Problem& p, const Guarded<T>& small, const Guarded<T>& big, std::vector<double>& value,
            std::vector<double>& size) {
  const cpu::Axis &y = p.rows, &x = p.columns;
  const auto row_of = [&](const Guarded<T>& from, int64_t pixel, int64_t channels) {
    return from.data() + pixel * channels;
  };
  for (int64_t n = 0; n < p.samples; ++n)
    for (int64_t i = 0; i < y.small; ++i)
      for (int64_t j = 0; j < x.small; ++j)
        for (int64_t k = 0; k < y.taps; ++k)
          for (int64_t l = 0; l < x.taps; ++l) {
            const int64_t row = y.stride * i + y.dilation * k - y.padding,
                          column = x.stride * j + x.dilation * l - x.padding;
            if (row < 0 || row >= y.big || column < 0 || column >= x.big) continue;
            const T *a = row_of(small, (n * y.small + i) * x.small + j, p.groups * p.channels),
                    *b = row_of(big, (n * y.big + row) * x.big + column, p.groups * p.big_channels);
            for (int64_t c = 0; c < p.groups * p.channels; ++c)
              for (int64_t d = 0; d < p.big_channels; ++d) {
                const double product = double(float(a[c])) * double(float(b[c / p.channels * p.big_channels + d]));
                const int64_t at = ((c * y.taps + k) * x.taps + l) * p.big_channels + d;
                value[at] += product, size[at] += std::fabs(product);
              }
          }
}

template <class T>
void check_case(const cpu::Kernel& kernel, const Case& k) {
  const cpu::Problem& p = k.problem;
  const cpu::Axis &y = p.rows, &x = p.columns;
  const int64_t pixels = p.samples * y.small * x.small;
  // 8 bytes past a line of the cache.
  Guarded<T> small(pixels * p.groups * p.channels, 8 / sizeof(T)),
      big(p.samples * y.big * x.big * p.groups * p.big_channels, 8 / sizeof(T));
  Guarded<float> dw(p.groups * p.channels * y.taps * x.taps * p.big_channels, 1), in_parts(dw.size(), 2);
  std::mt19937 bits(static_cast<unsigned>(big.size()));
  for (auto* from : {&small, &big})
    for (size_t i = 0; i < from->size(); ++i)
      (*from)[i] = static_cast<T>(static_cast<float>(static_cast<int>(bits() % 4095) - 2047) / 1024.0f);

  const cpu::Pass pass = kernel.passes[static_cast<int>(kDType<T>)];
  const cpu::Parts whole = cpu::parts(kernel, p, 1);
  CHECK(whole.count == p.groups, "%s: %d parts", k.what, static_cast<int>(whole.count));
  pass({p, small.data(), big.data(), dw.data()}, whole, 0, whole.count);
  // As by many threads of which the last come first: not a bit may change.
  for (int64_t threads : {2, 7, 64}) {
    std::memset(in_parts.data(), 0xff, in_parts.size() * sizeof(float));
    const cpu::Parts parts = cpu::parts(kernel, p, threads);
    CHECK(parts.count < threads + p.groups, "%s: %d parts", k.what, static_cast<int>(parts.count));
    for (int64_t part = parts.count; part-- > 0;)
      pass({p, small.data(), big.data(), in_parts.data()}, parts, part, part + 1);
    CHECK(std::memcmp(dw.data(), in_parts.data(), dw.size() * sizeof(float)) == 0, "%s, %d threads", k.what,
          static_cast<int>(threads));
  }
  CHECK(dw.intact() && in_parts.intact(), "%s", k.what);

  std::vector<double> value(dw.size()), size(dw.size());
  define(p, small, big, value, size);
  for (size_t i = 0; i < dw.size(); ++i)
    CHECK(std::fabs(dw[i] - value[i]) <= static_cast<double>(pixels + 1) * 0x1p-24 * size[i],
          "%s at %d: got %.9g, expected %.9g", k.what, static_cast<int>(i), static_cast<double>(dw[i]), value[i]);
}

const Build<cpu::Kernel> kBuilds[] = {
    {"baseline", &cpu::baseline::kernel, gankernels::cpu::Isa::kBaseline},
#if defined(GANKERNELS_X86)
    {"wide", &cpu::wide::kernel, gankernels::cpu::Isa::kAvx2},
    {"avx2", &cpu::avx2::kernel, gankernels::cpu::Isa::kAvx2},
    {"avx512", &cpu::avx512::kernel, gankernels::cpu::Isa::kAvx512},
#else
    {"wide", &cpu::wide::kernel, gankernels::cpu::Isa::kBaseline},
#endif
};

}  // namespace

int main(int count, char** arguments) {
  return check_build(count, arguments, kBuilds, [](const cpu::Kernel& kernel) {
    for (const Case& k : kCases) {
      check_case<float>(kernel, k);
      check_case<__nv_bfloat16>(kernel, k);
      check_case<__half>(kernel, k);
    }
  });
}

// The CPU's weight gradient of convolutions, one instruction set a run, held against the definition.
// Usage: test_convolution_weight_gradient_cpu baseline|wide|avx2|avx512
#include <cstring>

#include "../../csrc/cpu/convolution_weight_gradient.h"
#include "convolutions.h"
#include "cpu_builds.h"
#include "dtypes.h"

namespace cpu = gankernels::convolution_weight_gradient::cpu;

namespace gankernels::convolution_weight_gradient::cpu::wide {
extern const Kernel kernel;
}

namespace {

const Case<cpu::Problem> kCases[] = {
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

template <class T>
std::vector<Bounded> define(const cpu::Problem& p, const Guarded<T>& small, const Guarded<T>& big) {
  const Axis &y = p.rows, &x = p.columns;
  std::vector<Bounded> dw(p.groups * p.channels * y.taps * x.taps * p.big_channels);
  for (int64_t n = 0; n < p.samples; ++n)
    for (int64_t i = 0; i < y.out; ++i)
      for (int64_t j = 0; j < x.out; ++j)
        for (int64_t k = 0; k < y.taps; ++k)
          for (int64_t l = 0; l < x.taps; ++l) {
            const int64_t row = y.stride * i + y.dilation * k - y.padding,
                          column = x.stride * j + x.dilation * l - x.padding;
            if (row < 0 || row >= y.in || column < 0 || column >= x.in) continue;
            const T *a = small.data() + ((n * y.out + i) * x.out + j) * p.groups * p.channels,
                    *b = big.data() + ((n * y.in + row) * x.in + column) * p.groups * p.big_channels;
            for (int64_t c = 0; c < p.groups * p.channels; ++c)
              for (int64_t d = 0; d < p.big_channels; ++d)
                dw[((c * y.taps + k) * x.taps + l) * p.big_channels + d] +=
                    double(float(a[c])) * double(float(b[c / p.channels * p.big_channels + d]));
          }
  return dw;
}

template <class T>
void check_case(const cpu::Kernel& kernel, const Case<cpu::Problem>& k) {
  const cpu::Problem& p = k.problem;
  const Axis &y = p.rows, &x = p.columns;
  const int64_t pixels = p.samples * y.out * x.out;
  // 8 bytes past a line of the cache.
  Guarded<T> small(pixels * p.groups * p.channels, 8 / sizeof(T)),
      big(p.samples * y.in * x.in * p.groups * p.big_channels, 8 / sizeof(T));
  Guarded<float> dw(p.groups * p.channels * y.taps * x.taps * p.big_channels, 1), in_parts(dw.size(), 2);
  fill({&small, &big}, big.size());

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
  check_sums(k.what, dw, define(p, small, big), pixels + 1);
}

}  // namespace

int main(int count, char** arguments) {
  using namespace gankernels::convolution_weight_gradient::cpu;
  const auto check = [](const Kernel& kernel) {
    for (const auto& k : kCases) {
      check_case<float>(kernel, k);
      check_case<__nv_bfloat16>(kernel, k);
      check_case<__half>(kernel, k);
    }
  };
  return check_build<baseline::kernel, wide::kernel, avx2::kernel, avx512::kernel>(count, arguments, check);
}

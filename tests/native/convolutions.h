// What the tests of the CPU's convolutions share.
#pragma once

#include <random>
#include <vector>

#include "../../csrc/cpu/convolution_axis.h"
#include "check.h"
#include "cuda_shim/guarded.h"

using cuda_shim::Guarded;
using gankernels::convolution::Axis;

template <class Problem>
struct Case {
  const char* what;
  Problem problem;
};

inline Axis axis(int64_t in, int64_t taps, int64_t stride = 1, int64_t padding = 0, int64_t dilation = 1) {
  return {(in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1, in, taps, stride, padding, dilation};
}

template <class T>
void fill(std::initializer_list<Guarded<T>*> arrays, size_t seed) {
  std::mt19937 bits(static_cast<unsigned>(seed));
  for (auto* array : arrays)
    for (size_t i = 0; i < array->size(); ++i)
      (*array)[i] = static_cast<T>(static_cast<float>(static_cast<int>(bits() % 4095) - 2047) / 1024.0f);
}

// Each is a sum of `terms` in fp32.
inline void check_sums(const char* what, const Guarded<float>& got, const std::vector<Bounded>& want, int64_t terms) {
  for (size_t i = 0; i < got.size(); ++i)
    CHECK(std::fabs(got[i] - want[i].value) <= static_cast<double>(terms) * 0x1p-24 * want[i].size,
          "%s at %d: got %.9g, expected %.9Lg", what, static_cast<int>(i), static_cast<double>(got[i]), want[i].value);
}

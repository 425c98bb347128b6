// What the tests of every kernel know of the element types, and the one that a process is told to check.
#pragma once

#include <cstdio>
#include <string>
#include <type_traits>

#include "../../csrc/common.h"
#include "check.h"
#include "cuda_shim/cuda_bf16.h"  // for their bits: they have no others on the CPU
#include "cuda_shim/cuda_fp16.h"

template <class T>
using AccumulatorOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr gankernels::DType kDType = std::is_same_v<T, double>          ? gankernels::DType::kFloat64
                                     : std::is_same_v<T, float>         ? gankernels::DType::kFloat32
                                     : std::is_same_v<T, __nv_bfloat16> ? gankernels::DType::kBFloat16
                                                                        : gankernels::DType::kFloat16;
template <class T>
constexpr double kUnitRoundoff = std::is_same_v<T, double>          ? 0x1p-53
                                 : std::is_same_v<T, float>         ? 0x1p-24
                                 : std::is_same_v<T, __nv_bfloat16> ? 0x1p-8
                                                                    : 0x1p-11;

// The exit code of `test <dtype>`, after `check.operator()<T>()`.
template <class Check>
int check_dtype(int count, char** arguments, const Check& check) {
  const std::string dtype = count == 2 ? arguments[1] : "";
  if (dtype == "float32") {
    check.template operator()<float>();
  } else if (dtype == "float64") {
    check.template operator()<double>();
  } else if (dtype == "bfloat16") {
    check.template operator()<__nv_bfloat16>();
  } else if (dtype == "float16") {
    check.template operator()<__half>();
  } else {
    std::fprintf(stderr, "usage: %s float32|float64|bfloat16|float16\n", arguments[0]);
    return 2;
  }
  std::printf("%s: %d failures\n", dtype.c_str(), failures);
  return failures ? 1 : 0;
}

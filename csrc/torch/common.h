// What every binding needs to turn tensors into pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "../common.h"

namespace gankernels {

inline DType dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_CHECK(false, "x: got dtype ", x.scalar_type(), ", expected float32, float64, bfloat16 or float16");
  }
}

// Statistics, gains and biases: fp32, and fp64 for fp64.
inline at::ScalarType accumulator_of(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The same rule stands in gankernels/ops/_layout.py, for the fakes.
inline Layout layout_of(const at::Tensor& x) {
  return x.sym_stride(1) == 1 && !x.is_contiguous() ? Layout::kChannelsLast : Layout::kContiguous;
}

inline at::MemoryFormat memory_format(Layout layout) {
  return layout == Layout::kChannelsLast ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// By the names that the Python side has made sure of; each op takes those up to `last`.
inline Activation activation_of(std::string_view name, Activation last = Activation::kLeakyRelu) {
  constexpr std::string_view kNames[] = {"none", "relu", "lrelu", "tanh", "sigmoid", "silu", "softplus", "gelu"};
  for (int i = 0; i <= static_cast<int>(last); ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  TORCH_CHECK(false, "activation: got ", name, ", which this op does not have");
}

}  // namespace gankernels

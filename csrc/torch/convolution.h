// The convolution of PyTorch's library as three ops that are closed under differentiation: see
// gankernels/ops/_convolution.py, which declares them and says what they are.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <vector>

namespace gankernels::convolution {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Whether a backward formula that runs now makes weight gradients: gankernels.no_weight_gradients says no.
inline std::atomic<bool> weight_gradients_wanted = true;

// Products up to which a dense call on a CPU goes to ATen unasked: it takes a fraction of a millisecond, and the plan a
// tenth of one. Where a picture is one pixel the plan has more to offer, and is asked from a sixteenth of that on.
inline std::atomic<int64_t> few_products = 1 << 25;

struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  bool transposed;
  std::vector<int64_t> output_padding;
  int64_t groups;
};

// How the ops take a geometry and hand it on.
#define GANKERNELS_GEOMETRY                                                                   \
  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, \
      at::IntArrayRef output_padding, int64_t groups
#define GANKERNELS_GEOMETRY_TYPES at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, bool, at::IntArrayRef, int64_t

using Convolution = Tensor(const Tensor& x, const Tensor& weight, const Optional& bias, GANKERNELS_GEOMETRY_TYPES);
using InputGradient = Tensor(const Tensor& dy, const Tensor& weight, c10::SymIntArrayRef x_size,
                             GANKERNELS_GEOMETRY_TYPES);
using WeightGradient = std::tuple<Tensor, Tensor>(const Tensor& dy, const Tensor& x, c10::SymIntArrayRef weight_size,
                                                  bool with_bias, GANKERNELS_GEOMETRY_TYPES);

}  // namespace gankernels::convolution

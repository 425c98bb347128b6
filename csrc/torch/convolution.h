// The convolution of PyTorch's library as three ops that are closed under differentiation: see
// gankernels/ops/_convolution.py, which declares them and says what they are.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <optional>
#include <vector>

namespace gankernels::convolution {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Whether a backward formula that runs now makes weight gradients: gankernels.no_weight_gradients says no.
inline std::atomic<bool> weight_gradients_wanted = true;

// Products up to which a dense call on a CPU goes to ATen unasked: it takes a fraction of a millisecond, and the plan a
// tenth of one. Where a picture is one pixel the plan has more to offer, and is asked from a sixteenth of that on.
inline std::atomic<int64_t> few_products = 1 << 25;

// When a convolution in channels_last, or its weight gradient, is this package's own kernel's.
enum class OwnKernel { kNever, kByRule, kAlways };
inline std::atomic<OwnKernel> own_convolutions = OwnKernel::kByRule, own_weight_gradients = OwnKernel::kByRule;

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

// The rule for a [N, C, H, W] in gankernels/ops/_layout.py.
inline std::array<int64_t, 4> strides_of(at::IntArrayRef size, bool channels_last) {
  const int64_t c = size[1], h = size[2], w = size[3];
  if (channels_last) return {h * w * c, 1, w * c, c};
  return {c * h * w, h * w, w, 1};
}

// Whether the own kernels take a dtype. Where the CPU multiplies in 16 bits the library is faster in them.
bool own_kernels_take(at::ScalarType dtype);

// `small` from `big`, or `big` from `small`, with the weight [small's channels, big's of a group, KH, KW] and the bias
// of what it makes, [*size] in channels_last and in x's dtype; none where that is not the way. fp32 throughout, rounded
// once.
std::optional<Tensor> own_convolution(const Tensor& x, const Tensor& weight, const Optional& bias, at::IntArrayRef size,
                                      bool to_big, at::IntArrayRef stride, at::IntArrayRef padding,
                                      at::IntArrayRef dilation, int64_t groups);

// dw, in channels_last and the pictures' dtype, from `small` and `big` as gankernels/ops/_convolution_gemm.py names
// them; none where that is not the way. fp32 throughout, rounded once.
std::optional<Tensor> own_weight_gradient(const Tensor& small, const Tensor& big, at::IntArrayRef weight_size,
                                          GANKERNELS_GEOMETRY);

}  // namespace gankernels::convolution

// The convolution ops where the host's time would be felt: calls that are our own kernels', 1x1 that are a matrix
// product as they stand, and those whose operands are what ATen is to be given, go there at once. All others, and where
// another matrix product may be faster, go by the plan in gankernels/ops/_convolution_library.py.
#include "convolution.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "autograd.h"

namespace gankernels::convolution {
namespace {

// The rule for a [N, C, H, W] in gankernels/ops/_layout.py.
bool prefers_channels_last(const Tensor& t) {
  return t.stride(1) <= t.stride(3) && t.stride(1) < t.stride(2);
}

// What the fakes promise: a dense tensor in one of the two layouts. ATen's own results are, nearly always.
Tensor laid_out(const Tensor& t, bool channels_last) {
  const auto strides = strides_of(t.sizes(), channels_last);
  if (t.strides() == at::IntArrayRef(strides)) return t;
  return at::empty_strided(t.sizes(), strides, t.options()).copy_(t);
}

// The picture that has a pixel for each position of the kernel: a convolution's output, a transposed one's input.
struct Small {
  int64_t samples, pixels;  // of all samples

  explicit Small(at::IntArrayRef size) : samples(size[0]), pixels(size[0] * size[2] * size[3]) {}
};

// Whether a call's operands are as a library wants them, whether it is ATen's as it stands, and its result's layout.
struct Call {
  bool channels_last, ready, direct;

  Call(const Tensor& a, const Tensor& b, const Small& small, int64_t weights, int64_t groups)
      : channels_last(prefers_channels_last(a) || prefers_channels_last(b)) {
    const bool full = a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble;
    const int64_t few = few_products / (small.pixels == small.samples ? 16 : 1);
    ready = a.numel() > 0 && b.numel() > 0 && (full || (!a.is_cpu() && (channels_last || groups > 1))) &&
            a.strides() == at::IntArrayRef(strides_of(a.sizes(), channels_last)) &&
            b.strides() == at::IntArrayRef(strides_of(b.sizes(), channels_last));
    direct = ready && (!a.is_cpu() || groups > 1 || small.pixels * weights <= few);
  }
};

// Autocast would round the operands again.
struct Exactly {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Stands for the operand whose size alone the library asks for: memory of another one where that suffices.
Tensor unread(at::IntArrayRef size, const Tensor& a, const Tensor& b, bool channels_last) {
  const auto strides = strides_of(size, channels_last);
  const int64_t count = c10::multiply_integers(size);
  for (const Tensor* t : {&a, &b})
    if (t->numel() >= count) return t->as_strided(size, strides);
  return at::empty_strided(size, strides, a.options());
}

// As gankernels/ops/_convolution_arguments.py has it.
std::array<int64_t, 4> output_size(at::IntArrayRef x, at::IntArrayRef weight, GANKERNELS_GEOMETRY) {
  std::array<int64_t, 4> size = {x[0], transposed ? weight[1] * groups : weight[0]};
  for (int d : {0, 1}) {
    const int64_t reach = dilation[d] * (weight[2 + d] - 1) + 1;
    size[2 + d] = transposed ? (x[2 + d] - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d]
                             : (x[2 + d] + 2 * padding[d] - reach) / stride[d] + 1;
  }
  return size;
}

// Inputs from which a dense 1x1 on a CPU is a matrix product at once: past those of own_convolution's, where the
// library takes up to half as long again for few pixels. gankernels/ops/_convolution_gemm.py has the same for the plan.
constexpr int64_t kProductInputs = 257;

// `small` from `big`, or `big` from `small`, [*size], as one matrix product; none where that is not the way.
std::optional<Tensor> product(const Call& call, const Tensor& picture, const Tensor& weight, const Optional& bias,
                              at::IntArrayRef size, bool to_big, at::IntArrayRef stride, at::IntArrayRef padding,
                              int64_t groups) {
  // What does not fit together is the library's to complain of.
  if (!picture.is_cpu() || !call.ready || !call.channels_last || groups > 1 || picture.size(1) < kProductInputs ||
      weight.size(2) * weight.size(3) * stride[0] * stride[1] != 1 || padding[0] != 0 || padding[1] != 0 ||
      size.slice(2) != picture.sizes().slice(2) || picture.scalar_type() != weight.scalar_type() ||
      picture.size(1) != weight.size(to_big ? 0 : 1))
    return std::nullopt;
  const Exactly exactly;
  const Tensor rows = picture.permute({0, 2, 3, 1}).reshape({-1, picture.size(1)}),
               matrix = weight.view({weight.size(0), weight.size(1)}), factor = to_big ? matrix : matrix.t();
  const Tensor y = bias ? at::addmm(*bias, rows, factor) : at::mm(rows, factor);
  return laid_out(y.view({size[0], size[2], size[3], size[1]}).permute({0, 3, 1, 2}), /*channels_last=*/true);
}

Tensor convolution(const Tensor& x, const Tensor& weight, const Optional& bias, GANKERNELS_GEOMETRY) {
  static const auto plan = autograd::op<Convolution>("gankernels_library::planned_convolution");
  Small small(x.sizes());
  if (!transposed) small.pixels = std::max(small.samples, small.pixels / (stride[0] * stride[1]));
  const Call call(x, weight, small, weight.numel(), groups);
  if (call.channels_last) {
    const auto size =
        output_size(x.sizes(), weight.sizes(), stride, padding, dilation, transposed, output_padding, groups);
    auto y = own_convolution(x, weight, bias, size, /*to_big=*/transposed, stride, padding, dilation, groups);
    if (!y) y = product(call, x, weight, bias, size, /*to_big=*/transposed, stride, padding, groups);
    if (y) return *y;
  }
  if (!call.direct) return plan.call(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
  const Exactly exactly;
  return laid_out(at::convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups),
                  call.channels_last);
}

Tensor input_gradient(const Tensor& dy, const Tensor& weight, c10::SymIntArrayRef x_symbols, GANKERNELS_GEOMETRY) {
  static const auto plan = autograd::op<InputGradient>("gankernels_library::planned_convolution_input_gradient");
  const auto x_size = C10_AS_INTARRAYREF_SLOW(x_symbols);
  const Call call(dy, weight, Small(transposed ? x_size : dy.sizes()), weight.numel(), groups);
  if (call.channels_last) {
    auto dx =
        own_convolution(dy, weight, std::nullopt, x_size, /*to_big=*/!transposed, stride, padding, dilation, groups);
    if (!dx) dx = product(call, dy, weight, std::nullopt, x_size, /*to_big=*/!transposed, stride, padding, groups);
    if (dx) return *dx;
  }
  if (!call.direct)
    return plan.call(dy, weight, x_symbols, stride, padding, dilation, transposed, output_padding, groups);
  const Exactly exactly;
  const Tensor x = unread(x_size, dy, weight, call.channels_last);
  return laid_out(
      std::get<0>(at::convolution_backward(dy, x, weight, at::OptionalIntArrayRef(), stride, padding, dilation,
                                           transposed, output_padding, groups, {true, false, false})),
      call.channels_last);
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& dy, const Tensor& x, c10::SymIntArrayRef weight_symbols,
                                           bool with_bias, GANKERNELS_GEOMETRY) {
  static const auto plan = autograd::op<WeightGradient>("gankernels_library::planned_convolution_weight_gradient");
  const auto weight_size = C10_AS_INTARRAYREF_SLOW(weight_symbols);
  const Small small((transposed ? x : dy).sizes());
  const Call call(dy, x, small, c10::multiply_integers(weight_size), groups);
  if (call.channels_last) {
    const auto dw = own_weight_gradient(transposed ? x : dy, transposed ? dy : x, weight_size, stride, padding,
                                        dilation, transposed, output_padding, groups);
    if (dw) return {*dw, with_bias ? dy.sum({0, 2, 3}) : at::empty({0}, dy.options())};
  }
  if (!call.direct)
    return plan.call(dy, x, weight_symbols, with_bias, stride, padding, dilation, transposed, output_padding, groups);
  const Exactly exactly;
  const Tensor weight = unread(weight_size, dy, x, call.channels_last);
  const int64_t channels = dy.size(1);
  const auto bias_size = with_bias ? at::OptionalIntArrayRef(channels) : at::OptionalIntArrayRef();
  auto [none, dw, db] = at::convolution_backward(dy, x, weight, bias_size, stride, padding, dilation, transposed,
                                                 output_padding, groups, {false, true, with_bias});
  return {laid_out(dw, call.channels_last), with_bias ? db : at::empty({0}, dy.options())};
}

void register_kernels(torch::Library& m) {
  m.impl("convolution", convolution);
  m.impl("convolution_input_gradient", input_gradient);
  m.impl("convolution_weight_gradient", weight_gradient);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels_library, CPU, m) {
  register_kernels(m);
}
TORCH_LIBRARY_IMPL(gankernels_library, CUDA, m) {
  register_kernels(m);
}

}  // namespace gankernels::convolution

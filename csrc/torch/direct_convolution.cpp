// This package's own convolution on a CPU: when it is the faster way, and how it is called.
#include "../cpu/direct_convolution.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include "../cpu/isa.h"
#include "allocate.h"
#include "convolution.h"

namespace gankernels::convolution {
namespace {

namespace cpu = direct_convolution::cpu;

// Products below which a thread is not worth waking, and numbers of a weight.
constexpr int64_t kGrain = 1 << 20, kPackingGrain = 1 << 13;

// Inputs of a dense kernel of one pixel: enough to pay for the tile's ends, and so few that the weights of a panel
// leave half of the first cache to the pixels.
constexpr int64_t kLeastInputs = 16, kMostInputs = 256;

// From measurements that docs/ops/conv2d.md names: without AVX-512, which was not measured; where the outputs fill at
// least three quarters of their panels; in groups, and for a dense kernel of one pixel on pictures of more than one.
bool is_faster(const cpu::Problem& p) {
  const Axis &y = p.rows, &x = p.columns;
  const bool is_pointwise = y.taps * x.taps * y.stride * x.stride == 1 && y.padding == 0 && x.padding == 0;
  const cpu::Kernel& kernel = cpu::kernel();
  return gankernels::cpu::isa() == gankernels::cpu::Isa::kAvx2 &&
         4 * p.groups * p.outputs >= 3 * kernel.columns * kernel.panels(p) &&
         (p.groups > 1 || (is_pointwise && y.out * x.out > 1 && p.inputs >= kLeastInputs && p.inputs <= kMostInputs));
}

}  // namespace

std::optional<Tensor> own_convolution(const Tensor& x_, const Tensor& weight_, const Optional& bias_,
                                      at::IntArrayRef size, bool to_big, at::IntArrayRef stride,
                                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const OwnKernel when = own_convolutions;
  const at::IntArrayRef w = weight_.sizes();
  // `big` is made by the kernel turned round, over `small` as it is: with a stride there would be zeros between.
  // What does not fit together is the library's to complain of.
  if (when == OwnKernel::kNever || !x_.is_cpu() || !own_kernels_take(x_.scalar_type()) ||
      x_.scalar_type() != weight_.scalar_type() || (to_big && stride[0] * stride[1] != 1) ||
      x_.size(1) != (to_big ? w[0] : w[1] * groups) || w[0] % groups != 0 || size[0] != x_.size(0) ||
      size[1] != (to_big ? w[1] * groups : w[0]) || x_.numel() == 0 || weight_.numel() == 0 || size[2] < 1 ||
      size[3] < 1)
    return std::nullopt;
  const auto axis = [&](int i) -> Axis {
    const int64_t turned = dilation[i] * (w[2 + i] - 1) - padding[i];
    return {size[2 + i], x_.size(2 + i), w[2 + i], stride[i], to_big ? turned : padding[i], dilation[i]};
  };
  const int64_t small = w[0] / groups;
  const cpu::Problem p = {size[0], groups, to_big ? small : w[1], to_big ? w[1] : small, axis(0), axis(1)};
  if (when == OwnKernel::kByRule && !is_faster(p)) return std::nullopt;

  const auto options = x_.options().dtype(at::kFloat);
  const Tensor x = x_.to(at::kFloat).contiguous(at::MemoryFormat::ChannelsLast), weight = weight_.to(at::kFloat);
  const Tensor bias = bias_ ? bias_->to(at::kFloat).contiguous() : Tensor();
  const auto s = weight.strides();
  const float* first = weight.const_data_ptr<float>();
  const cpu::Weight from =
      to_big ? cpu::Weight{first + (w[2] - 1) * s[2] + (w[3] - 1) * s[3], small * s[0], s[1], s[0], -s[2], -s[3]}
             : cpu::Weight{first, small * s[0], s[0], s[1], s[2], s[3]};
  const cpu::Kernel& kernel = cpu::kernel();
  const int64_t panels = kernel.panels(p), panel = cpu::panel_size(kernel, p);
  Tensor packed = at::empty({panels * panel}, options);
  float* const to = packed.mutable_data_ptr<float>();
  at::parallel_for(0, panels, at::divup(kPackingGrain, panel),
                   [&](int64_t begin, int64_t end) { kernel.pack(p, from, to, begin, end); });

  const auto strides = strides_of(size, /*channels_last=*/true);
  Tensor y = at::empty_strided(size, strides, options);
  use_huge_pages(y);
  const cpu::Args args = {p, x.const_data_ptr<float>(), to, bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                          y.mutable_data_ptr<float>()};
  const int64_t in_row = size[3] * weight.numel();
  at::parallel_for(0, p.samples * p.rows.out, at::divup(kGrain, in_row),
                   [&](int64_t begin, int64_t end) { kernel.pass(args, begin, end); });
  return x_.scalar_type() == at::kFloat ? y : at::empty_strided(size, strides, x_.options()).copy_(y);
}

}  // namespace gankernels::convolution

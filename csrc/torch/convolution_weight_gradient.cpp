// The CPU's own weight gradient for the dispatcher: checks, allocates, and spreads the kernel over at::parallel_for.
// gankernels/ops/_convolution_library.py calls it, behind an op that has the fake and the formulas.
#include "../cpu/convolution_weight_gradient.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "allocate.h"
#include "common.h"

namespace gankernels::convolution_weight_gradient {
namespace {

using at::Tensor;

// Products below which a thread is not worth waking.
constexpr int64_t kGrain = 1 << 18;

// small [N, C, H, W] and big [N, C', H', W'] to dw [C, C', KH, KW], in fp32.
Tensor weight_gradient(const Tensor& small_, const Tensor& big_, at::IntArrayRef taps, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK(small_.dim() == 4 && big_.dim() == 4 && small_.size(0) == big_.size(0), "big: got shape ", big_.sizes(),
              " beside ", small_.sizes(), ", expected as many samples in four dimensions");
  TORCH_CHECK(small_.scalar_type() == big_.scalar_type() && dtype_of(small_) != DType::kFloat64, "small: got dtype ",
              small_.scalar_type(), " beside ", big_.scalar_type(), ", expected float32, bfloat16 or float16 for both");
  for (const auto& pair : {taps, stride, padding, dilation})
    TORCH_CHECK(pair.size() == 2, "geometry: got ", pair, ", expected two numbers");
  const auto axis = [&](int i) -> cpu::Axis {
    return {small_.size(2 + i), big_.size(2 + i), taps[i], stride[i], padding[i], dilation[i]};
  };
  const Tensor small = small_.contiguous(at::MemoryFormat::ChannelsLast),
               big = big_.contiguous(at::MemoryFormat::ChannelsLast);
  const cpu::Problem p = {small.size(0), small.size(1), big.size(1), axis(0), axis(1)};
  for (const cpu::Axis& a : {p.rows, p.columns})
    TORCH_CHECK(a.taps > 0 && a.stride > 0 && a.padding >= 0 && a.dilation > 0, "geometry: got ", a.taps, " taps, ",
                "stride ", a.stride, ", padding ", a.padding, ", dilation ", a.dilation);
  Tensor dw = at::empty({p.channels, p.big_channels, taps[0], taps[1]},
                        small.options().dtype(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
  use_huge_pages(dw);
  if (small.numel() == 0 || big.numel() == 0) return dw.zero_();
  const cpu::Kernel& kernel = cpu::kernel();
  const int64_t products = small.numel() * p.big_channels * taps[0] * taps[1];
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), at::divup(products, kGrain));
  const cpu::Parts parts = cpu::parts(kernel, p, threads);
  const cpu::Args args = {p, small.const_data_ptr(), big.const_data_ptr(), dw.mutable_data_ptr<float>()};
  at::parallel_for(0, parts.count, 1, [&](int64_t begin, int64_t end) {
    kernel.passes[static_cast<int>(dtype_of(small))](args, parts, begin, end);
  });
  return dw;
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("convolution_weight_gradient", weight_gradient);
}

}  // namespace gankernels::convolution_weight_gradient

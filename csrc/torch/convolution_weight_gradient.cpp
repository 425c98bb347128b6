// This package's own weight gradient of a convolution on a CPU: when it is the faster way, and how it is called.
#include "../cpu/convolution_weight_gradient.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_strided.h>

#include "../cpu/isa.h"
#include "allocate.h"
#include "common.h"
#include "convolution.h"

namespace gankernels::convolution {
namespace {

namespace cpu = convolution_weight_gradient::cpu;

// Products below which a thread is not worth waking.
constexpr int64_t kGrain = 1 << 20;

// torch's own question to oneDNN, as in gankernels/ops/_convolution_library.py.
bool has_hardware(const char* query) {
  const auto op = c10::Dispatcher::singleton().findSchema({query, ""});
  return op && op->typed<bool()>().call();
}

// Channels of both pictures from which a dense 1x1 in fp32, a single matrix product, is this kernel's: each number that
// it packs is multiplied by that many.
constexpr int64_t kLeastPointwise = 64;
// But not with so many numbers of dw that they leave the second cache, and pixels for several passes over them.
constexpr int64_t kVastGradient = 1 << 18, kManyPixels = 1024;

// From measurements that docs/ops/conv2d.md names: without AVX-512, which was not measured; where big's channels fill
// at least three quarters of the tiles; and in fp32 not where the kernel lies on big once, which the library is as fast
// at, nor a 1x1 of few channels, or of very many with many pixels.
bool is_faster(const cpu::Problem& p, at::ScalarType dtype) {
  const Axis &y = p.rows, &x = p.columns;
  const bool is_pointwise = y.taps * x.taps * y.stride * x.stride == 1 && y.padding + x.padding == 0;
  const bool is_single = y.out * x.out == 1 && y.in == y.taps && x.in == x.taps;
  const bool is_narrow = std::min(p.channels, p.big_channels) < kLeastPointwise;
  const bool is_vast = p.channels * p.big_channels >= kVastGradient && p.samples * y.out * x.out >= kManyPixels;
  const int64_t tile = cpu::kernel().tile_big_channels, tiles = at::divup(p.big_channels, tile);
  return gankernels::cpu::isa() == gankernels::cpu::Isa::kAvx2 && 4 * p.big_channels >= 3 * tile * tiles &&
         (dtype != at::kFloat || p.groups > 1 || !(is_single || (is_pointwise && (is_narrow || is_vast))));
}

}  // namespace

bool own_kernels_take(at::ScalarType dtype) {
  static const bool has_bf16 = has_hardware("mkldnn::_is_mkldnn_bf16_supported"),
                    has_fp16 = has_hardware("mkldnn::_is_mkldnn_fp16_supported");
  return dtype == at::kFloat || (dtype == at::kBFloat16 && !has_bf16) || (dtype == at::kHalf && !has_fp16);
}

std::optional<Tensor> own_weight_gradient(const Tensor& small_, const Tensor& big_, at::IntArrayRef weight_size,
                                          GANKERNELS_GEOMETRY) {
  const OwnKernel when = own_weight_gradients;
  // What does not fit together is the library's to complain of.
  if (when == OwnKernel::kNever || !small_.is_cpu() || !own_kernels_take(small_.scalar_type()) ||
      small_.scalar_type() != big_.scalar_type() || small_.size(0) != big_.size(0) ||
      small_.size(1) != weight_size[0] || weight_size[0] % groups != 0 || big_.size(1) != groups * weight_size[1] ||
      small_.numel() == 0 || big_.numel() == 0)
    return std::nullopt;
  const auto axis = [&](int i) -> Axis {
    return {small_.size(2 + i), big_.size(2 + i), weight_size[2 + i], stride[i], padding[i], dilation[i]};
  };
  const cpu::Problem p = {small_.size(0), groups, weight_size[0] / groups, weight_size[1], axis(0), axis(1)};
  if (when == OwnKernel::kByRule && !is_faster(p, small_.scalar_type())) return std::nullopt;
  const Tensor small = small_.contiguous(at::MemoryFormat::ChannelsLast),
               big = big_.contiguous(at::MemoryFormat::ChannelsLast);
  const auto strides = strides_of(weight_size, /*channels_last=*/true);
  Tensor dw = at::empty_strided(weight_size, strides, small.options().dtype(at::kFloat));
  use_huge_pages(dw);
  const cpu::Kernel& kernel = cpu::kernel();
  const cpu::Pass pass = kernel.passes[static_cast<int>(dtype_of(small))];
  const int64_t products = p.samples * p.rows.out * p.columns.out * dw.numel();
  const cpu::Parts parts = cpu::parts(kernel, p, std::min<int64_t>(at::get_num_threads(), at::divup(products, kGrain)));
  const cpu::Args args = {p, small.const_data_ptr(), big.const_data_ptr(), dw.mutable_data_ptr<float>()};
  at::parallel_for(0, parts.count, 1, [&](int64_t begin, int64_t end) { pass(args, parts, begin, end); });
  return dw.scalar_type() == small.scalar_type() ? dw
                                                 : at::empty_strided(weight_size, strides, small.options()).copy_(dw);
}

}  // namespace gankernels::convolution

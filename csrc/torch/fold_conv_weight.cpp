// fold_conv_weight for the dispatcher: checks, allocates, and hands pointers to the CPU's pass, spread over
// at::parallel_for, or to the CUDA launcher.
#include "../fold_conv_weight.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../cpu/fold_conv_weight.h"
#include "allocate.h"
#include "common.h"

#ifdef GANKERNELS_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gankernels::fold_conv_weight {
namespace {

using at::Tensor;

// Numbers of the result below which a thread is not worth waking, as ATen's own kernels have it.
constexpr int64_t kGrain = 32768;

void launch(const Args& args, const Tensor& to) {
#ifdef GANKERNELS_WITH_CUDA
  if (to.is_cuda()) {
    const c10::cuda::CUDAGuard guard(to.device());
    C10_CUDA_CHECK(static_cast<cudaError_t>(cuda::fold(args, c10::cuda::getCurrentCUDAStream().stream())));
    return;
  }
#endif
  const cpu::Pass pass = cpu::pass(args.problem.dtype);
  const int64_t tiles = cpu::tiling(args.problem).tiles;
  at::parallel_for(0, tiles, at::divup(kGrain * tiles, to.numel()),
                   [&](int64_t begin, int64_t end) { pass(args, begin, end); });
}

// From [.., taps, taps] to [.., taps + grow, taps + grow]. Up, the folded weight is the one with its channels swapped,
// and of two that are as large the result.
Tensor map(const char* name, const Tensor& from_, bool up, Layout to_layout, int grow) {
  TORCH_CHECK(from_.dim() == 4 && from_.size(2) == from_.size(3), name, ": got shape ", from_.sizes(),
              ", expected four dimensions, the last two of one size");
  const int64_t from_taps = from_.size(2), to_taps = from_taps + grow;
  TORCH_CHECK((grow == 0 || std::min(from_taps, to_taps) % 2 == 1) && std::max(from_taps, to_taps) <= kMostTaps, name,
              ": got shape ", from_.sizes(), ", expected an odd kernel of at most ", kMostTaps - 1);
  const Layout layout = layout_of(from_);
  const Tensor from = from_.contiguous(memory_format(layout));
  const bool from_swapped = up && grow < 0, to_swapped = up && grow >= 0;
  const int64_t outputs = from.size(from_swapped ? 1 : 0), inputs = from.size(from_swapped ? 0 : 1);
  Tensor to = at::empty({to_swapped ? inputs : outputs, to_swapped ? outputs : inputs, to_taps, to_taps},
                        from.options().memory_format(memory_format(to_layout)));
  use_huge_pages(to);
  if (to.numel() == 0) return to;
  const Problem p = {outputs,
                     inputs,
                     static_cast<int>(from_taps),
                     static_cast<int>(to_taps),
                     up,
                     dtype_of(from),
                     strides_of(outputs, inputs, static_cast<int>(from_taps), from_swapped, layout),
                     strides_of(outputs, inputs, static_cast<int>(to_taps), to_swapped, to_layout)};
  launch({p, from.const_data_ptr(), to.mutable_data_ptr()}, to);
  return to;
}

Layout layout_named(bool channels_last) {
  return channels_last ? Layout::kChannelsLast : Layout::kContiguous;
}

Tensor forward(const Tensor& weight, bool up, bool channels_last) {
  return map("weight", weight, up, layout_named(channels_last), 1);
}

Tensor backward(const Tensor& dfolded, bool up, bool channels_last) {
  return map("dfolded", dfolded, up, layout_named(channels_last), -1);
}

Tensor transposed(const Tensor& weight, bool channels_last) {
  return map("weight", weight, /*up=*/true, layout_named(channels_last), 0);
}

void register_ops(torch::Library& m) {
  m.impl("fold_conv_weight_forward", forward);
  m.impl("fold_conv_weight_backward", backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  register_ops(m);
  m.impl("transpose_conv_weight", transposed);
}
#ifdef GANKERNELS_WITH_CUDA
TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  register_ops(m);
}
#endif

}  // namespace gankernels::fold_conv_weight

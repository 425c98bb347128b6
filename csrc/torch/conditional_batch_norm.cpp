// Conditional batch normalisation for the dispatcher: checks, allocates, and hands pointers to the CPU's passes, spread
// over at::parallel_for, or to the CUDA launchers.
#include "../conditional_batch_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../cpu/conditional_batch_norm.h"
#include "allocate.h"
#include "common.h"

#ifdef GANKERNELS_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gankernels::conditional_batch_norm {
namespace {

using at::Tensor;

// ---- The CPU ----

// Bytes of one tensor that a thread takes through all passes before the next: they stay in its second-level cache.
constexpr int64_t kCacheBytes = 128 << 10;

// Numbers below which a thread is not worth waking, as ATen's own kernels have it.
constexpr int64_t kGrain = 32768;

// Runs sums over the tiles, terms over the channels, apply over the tiles. Contiguous channels are independent, so each
// goes through all three while it is in the cache.
template <class Sums, class Terms, class Apply>
void run(const Problem& p, bool with_sums, Sums&& sums, Terms&& terms, Apply&& apply) {
  const cpu::Tiling t = cpu::tiling(p);
  const int64_t pixels = std::max<int64_t>(p.n * p.l, 1), channels_grain = at::divup(kGrain, pixels);
  if (t.per_channel > 0 && p.c >= at::get_num_threads()) {
    const int64_t step = std::max<int64_t>(kCacheBytes / 4 / pixels, 1);
    at::parallel_for(0, p.c, channels_grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c += step) {
        const int64_t last = std::min(c + step, end);
        if (with_sums) {
          sums(c * t.per_channel, last * t.per_channel);
          terms(c, last);
        }
        apply(c * t.per_channel, last * t.per_channel);
      }
    });
    return;
  }
  const int64_t tile_grain = t.tiles > 0 ? at::divup(kGrain * t.tiles, pixels * p.c) : 1;
  if (with_sums) {
    at::parallel_for(0, t.tiles, tile_grain, sums);
    at::parallel_for(0, p.c, channels_grain, terms);
  }
  at::parallel_for(0, t.tiles, tile_grain, apply);
}

Tensor partials(const Problem& p, const Tensor& gain, int order) {
  const auto dtype = order == 0 ? at::kDouble : gain.scalar_type();
  return at::empty({cpu::kPartials[order], cpu::tiling(p).slots, p.c}, gain.options().dtype(dtype));
}

void launch_cpu(const Forward& args, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(args.problem.dtype, args.problem.activation);
  const Tensor partial = partials(args.problem, gain, 0);
  void* sums = partial.mutable_data_ptr();
  run(
      args.problem, args.problem.batch_statistics,
      [&](int64_t begin, int64_t end) { pass.statistics(args, sums, begin, end); },
      [&](int64_t begin, int64_t end) { pass.merge_statistics(args, sums, begin, end); },
      [&](int64_t begin, int64_t end) { pass.forward(args, begin, end); });
}

void launch_cpu(const Backward& args, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(args.problem.dtype, args.problem.activation);
  const Tensor partial = partials(args.problem, gain, 1),
               term = at::empty({cpu::kTerms[1], args.problem.c}, gain.options());
  void *sums = partial.mutable_data_ptr(), *terms = term.mutable_data_ptr();
  run(
      args.problem, true, [&](int64_t begin, int64_t end) { pass.backward_sums(args, sums, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward_terms(args, sums, terms, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward(args, terms, begin, end); });
}

void launch_cpu(const BackwardBackward& args, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(args.problem.dtype, args.problem.activation);
  const Tensor partial = partials(args.problem, gain, 2),
               term = at::empty({cpu::kTerms[2], args.problem.c}, gain.options());
  void *sums = partial.mutable_data_ptr(), *terms = term.mutable_data_ptr();
  run(
      args.problem, true, [&](int64_t begin, int64_t end) { pass.backward_backward_sums(args, sums, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward_backward_terms(args, sums, terms, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward_backward(args, terms, begin, end); });
}

// ---- The GPU ----

#ifdef GANKERNELS_WITH_CUDA
int launch_cuda(const Forward& args, void* workspace, void* stream) {
  return cuda::forward(args, workspace, stream);
}
int launch_cuda(const Backward& args, void* workspace, void* stream) {
  return cuda::backward(args, workspace, stream);
}
int launch_cuda(const BackwardBackward& args, void* workspace, void* stream) {
  return cuda::backward_backward(args, workspace, stream);
}
#endif

template <class Args>
void launch(const Args& args, const Tensor& gain) {
#ifdef GANKERNELS_WITH_CUDA
  if (gain.is_cuda()) {
    constexpr int kOrder = std::is_same_v<Args, Forward> ? 0 : std::is_same_v<Args, Backward> ? 1 : 2;
    const c10::cuda::CUDAGuard guard(gain.device());
    const Tensor workspace = at::empty({cuda::workspace_bytes(args.problem, kOrder)}, gain.options().dtype(at::kByte));
    C10_CUDA_CHECK(static_cast<cudaError_t>(
        launch_cuda(args, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream().stream())));
    return;
  }
#endif
  launch_cpu(args, gain);
}

// ---- The ops ----

Problem problem_of(const Tensor& x, bool batch_statistics, double eps, std::string_view activation, double slope) {
  TORCH_CHECK(x.dim() == 4, "x: got ", x.dim(), " dimensions, expected 4: [N, C, H, W]");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), layout_of(x), dtype_of(x), activation_of(activation),
          slope,     eps,       batch_statistics};
}

// With x's shape and device, in the layout of the problem.
Tensor pixels(const char* name, const Tensor& t, const Tensor& x, const Problem& p) {
  TORCH_CHECK(t.sizes() == x.sizes(), name, ": got shape ", t.sizes(), ", expected ", x.sizes());
  TORCH_CHECK(t.device() == x.device(), name, ": got device ", t.device(), ", expected ", x.device());
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, ": got dtype ", t.scalar_type(), ", expected ",
              x.scalar_type());
  return t.contiguous(memory_format(p.layout));
}

// Contiguous, in the accumulation type.
Tensor small(const char* name, const Tensor& t, const Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK(t.sizes() == shape, name, ": got shape ", t.sizes(), ", expected ", shape);
  TORCH_CHECK(t.device() == x.device(), name, ": got device ", t.device(), ", expected ", x.device());
  return t.to(accumulator_of(x)).contiguous();
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x_, const Tensor& gain_, const Tensor& bias_,
                                           const std::optional<Tensor>& mean_, const std::optional<Tensor>& var_,
                                           double eps, std::string_view activation, double slope) {
  TORCH_CHECK(mean_.has_value() == var_.has_value(), "mean and var: got one of them, expected both or none");
  const Problem p = problem_of(x_, !mean_.has_value(), eps, activation, slope);
  const Tensor x = pixels("x", x_, x_, p), gain = small("gain", gain_, x, {p.n, p.c}),
               bias = small("bias", bias_, x, {p.n, p.c});
  // An op may not return its input, hence the copies of given statistics.
  Tensor mean = mean_ ? small("mean", *mean_, x, {p.c}).clone() : at::empty({p.c}, gain.options()),
         var = var_ ? small("var", *var_, x, {p.c}).clone() : at::empty({p.c}, gain.options());
  Tensor y = empty_like_pixels(x);
  launch(Forward{p, x.const_data_ptr(), gain.const_data_ptr(), bias.const_data_ptr(), mean.mutable_data_ptr(),
                 var.mutable_data_ptr(), y.mutable_data_ptr()},
         gain);
  return {y, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                                            const Tensor& bias_, const Tensor& mean_, const Tensor& var_,
                                            bool batch_statistics, double eps, std::string_view activation,
                                            double slope) {
  const Problem p = problem_of(x_, batch_statistics, eps, activation, slope);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p), gain = small("gain", gain_, x, {p.n, p.c}),
               bias = small("bias", bias_, x, {p.n, p.c}), mean = small("mean", mean_, x, {p.c}),
               var = small("var", var_, x, {p.c});
  Tensor dx = empty_like_pixels(x), dgain = at::empty_like(gain), dbias = at::empty_like(bias);
  if (x.numel() == 0) return {dx, dgain.zero_().to(gain_.scalar_type()), dbias.zero_().to(bias_.scalar_type())};
  launch(Backward{p, dy.const_data_ptr(), x.const_data_ptr(), gain.const_data_ptr(), bias.const_data_ptr(),
                  mean.const_data_ptr(), var.const_data_ptr(), dx.mutable_data_ptr(), dgain.mutable_data_ptr(),
                  dbias.mutable_data_ptr()},
         gain);
  return {dx, dgain.to(gain_.scalar_type()), dbias.to(bias_.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> backward_backward(const Tensor& ddx_, const Tensor& ddgain_, const Tensor& ddbias_,
                                                     const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                                                     const Tensor& bias_, const Tensor& mean_, const Tensor& var_,
                                                     bool batch_statistics, double eps, std::string_view activation,
                                                     double slope) {
  const Problem p = problem_of(x_, batch_statistics, eps, activation, slope);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p), ddx = pixels("ddx", ddx_, x_, p),
               gain = small("gain", gain_, x, {p.n, p.c}), bias = small("bias", bias_, x, {p.n, p.c}),
               ddgain = small("ddgain", ddgain_, x, {p.n, p.c}), ddbias = small("ddbias", ddbias_, x, {p.n, p.c}),
               mean = small("mean", mean_, x, {p.c}), var = small("var", var_, x, {p.c});
  Tensor ddy = empty_like_pixels(x), dx = empty_like_pixels(x), dgain = at::empty_like(gain);
  if (x.numel() == 0) return {ddy, dx, dgain.zero_().to(gain_.scalar_type())};
  launch(
      BackwardBackward{p, ddx.const_data_ptr(), ddgain.const_data_ptr(), ddbias.const_data_ptr(), dy.const_data_ptr(),
                       x.const_data_ptr(), gain.const_data_ptr(), bias.const_data_ptr(), mean.const_data_ptr(),
                       var.const_data_ptr(), ddy.mutable_data_ptr(), dx.mutable_data_ptr(), dgain.mutable_data_ptr()},
      gain);
  return {ddy, dx, dgain.to(gain_.scalar_type())};
}

void register_ops(torch::Library& m) {
  m.impl("conditional_batch_norm_forward", forward);
  m.impl("conditional_batch_norm_backward", backward);
  m.impl("conditional_batch_norm_backward_backward", backward_backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  register_ops(m);
}
#ifdef GANKERNELS_WITH_CUDA
TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  register_ops(m);
}
#endif

}  // namespace gankernels::conditional_batch_norm

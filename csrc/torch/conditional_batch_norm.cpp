// Conditional batch normalisation for the dispatcher: checks, allocates, and hands pointers to the CPU's passes, spread
// over at::parallel_for, or to the CUDA launchers.
#include "conditional_batch_norm.h"

#include <torch/library.h>

#include "allocate.h"

namespace gankernels::conditional_batch_norm {
namespace {

// ---- The CPU ----

void launch_cpu(const Forward& batch, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(batch.problem.dtype, batch.problem.activation);
  run_each(batch, gain, 0, [&](const Forward& args, void* sums, void*) {
    run(
        args.problem, args.problem.batch_statistics ? Part::kAll : Part::kApply,
        [&](int64_t begin, int64_t end) { pass.statistics(args, sums, begin, end); },
        [&](int64_t begin, int64_t end) { pass.merge_statistics(args, sums, begin, end); },
        [&](int64_t begin, int64_t end) { pass.forward(args, begin, end); });
  });
}

void launch_cpu(const Backward& batch, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(batch.problem.dtype, batch.problem.activation);
  run_each(batch, gain, 1, [&](const Backward& args, void* sums, void* terms) {
    run(
        args.problem, Part::kAll, [&](int64_t begin, int64_t end) { pass.backward_sums(args, sums, begin, end); },
        [&](int64_t begin, int64_t end) { pass.backward_terms(args, sums, terms, begin, end); },
        [&](int64_t begin, int64_t end) { pass.backward(args, terms, begin, end); });
  });
}

void launch_cpu(const BackwardBackward& batch, const Tensor& gain) {
  const cpu::Passes& pass = cpu::passes(batch.problem.dtype, batch.problem.activation);
  run_each(batch, gain, 2, [&](const BackwardBackward& args, void* sums, void* terms) {
    run(
        args.problem, Part::kAll,
        [&](int64_t begin, int64_t end) { pass.backward_backward_sums(args, sums, begin, end); },
        [&](int64_t begin, int64_t end) { pass.backward_backward_terms(args, sums, terms, begin, end); },
        [&](int64_t begin, int64_t end) { pass.backward_backward(args, terms, begin, end); });
  });
}

// ---- The CPU or the GPU ----

template <class Args>
void launch(const Args& args, const Tensor& gain) {
#ifdef GANKERNELS_WITH_CUDA
  if (gain.is_cuda()) {
    constexpr int kOrder = std::is_same_v<Args, Forward> ? 0 : std::is_same_v<Args, Backward> ? 1 : 2;
    on_stream(args.problem, gain, kOrder, [&](void* workspace, void* stream) {
      if constexpr (kOrder == 0) return cuda::forward(args, workspace, stream);
      if constexpr (kOrder == 1) return cuda::backward(args, workspace, stream);
      if constexpr (kOrder == 2) return cuda::backward_backward(args, workspace, stream);
    });
    return;
  }
#endif
  launch_cpu(args, gain);
}

// ---- The ops ----

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x_, const Tensor& gain_, const Tensor& bias_,
                                           const std::optional<Tensor>& labels_, const std::optional<Tensor>& mean_,
                                           const std::optional<Tensor>& var_, double eps, std::string_view activation,
                                           double slope, bool of_samples) {
  TORCH_CHECK(mean_.has_value() == var_.has_value(), "mean and var: got one of them, expected both or none");
  TORCH_CHECK(!(of_samples && mean_), "per_sample: got True with mean and var, expected False");
  Problem p = problem_of(x_, !mean_.has_value(), eps, activation, slope);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), gain = small("gain", gain_, x, {p.rows(), p.c}),
               bias = small("bias", bias_, x, {p.rows(), p.c});
  // An op may not return its input, hence the copies of given statistics.
  Tensor mean = mean_ ? small("mean", *mean_, x, {p.c}).clone()
                      : at::empty(statistics_shape(p, of_samples), gain.options()),
         var =
             var_ ? small("var", *var_, x, {p.c}).clone() : at::empty(statistics_shape(p, of_samples), gain.options());
  Tensor y = empty_like_pixels(x);
  if (of_samples) p = per_sample(p);
  launch(Forward{p, x.const_data_ptr(), gain.const_data_ptr(), bias.const_data_ptr(), mean.mutable_data_ptr(),
                 var.mutable_data_ptr(), y.mutable_data_ptr()},
         gain);
  return {y, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                                            const Tensor& bias_, const std::optional<Tensor>& labels_,
                                            const Tensor& mean_, const Tensor& var_, bool batch_statistics, double eps,
                                            std::string_view activation, double slope) {
  Problem p = problem_of(x_, batch_statistics, eps, activation, slope);
  const bool of_samples = mean_.dim() == 2;
  const at::DimVector statistics = statistics_shape(p, of_samples);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               mean = small("mean", mean_, x, statistics), var = small("var", var_, x, statistics);
  Tensor dx = empty_like_pixels(x), dgain = row_sums(p, gain, gain.sizes()), dbias = row_sums(p, gain, gain.sizes());
  if (x.numel() == 0) return {dx, dgain.zero_().to(gain_.scalar_type()), dbias.zero_().to(bias_.scalar_type())};
  if (of_samples) p = per_sample(p);
  launch(Backward{p, dy.const_data_ptr(), x.const_data_ptr(), gain.const_data_ptr(), bias.const_data_ptr(),
                  mean.const_data_ptr(), var.const_data_ptr(), dx.mutable_data_ptr(), dgain.mutable_data_ptr(),
                  dbias.mutable_data_ptr()},
         gain);
  return {dx, dgain.to(gain_.scalar_type()), dbias.to(bias_.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> backward_backward(const Tensor& ddx_, const Tensor& ddgain_, const Tensor& ddbias_,
                                                     const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                                                     const Tensor& bias_, const std::optional<Tensor>& labels_,
                                                     const Tensor& mean_, const Tensor& var_, bool batch_statistics,
                                                     double eps, std::string_view activation, double slope) {
  Problem p = problem_of(x_, batch_statistics, eps, activation, slope);
  const bool of_samples = mean_.dim() == 2;
  const at::DimVector statistics = statistics_shape(p, of_samples);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p), ddx = pixels("ddx", ddx_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               ddgain = small("ddgain", ddgain_, x, {p.rows(), p.c}),
               ddbias = small("ddbias", ddbias_, x, {p.rows(), p.c}), mean = small("mean", mean_, x, statistics),
               var = small("var", var_, x, statistics);
  Tensor ddy = empty_like_pixels(x), dx = empty_like_pixels(x), dgain = row_sums(p, gain, gain.sizes());
  if (x.numel() == 0) return {ddy, dx, dgain.zero_().to(gain_.scalar_type())};
  if (of_samples) p = per_sample(p);
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

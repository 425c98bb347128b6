// Conditional batch normalisation in parts, for statistics of several ranks: what stands before and behind the middle
// step of each order, which synchronized.py does between them. Pixels may be none: another rank may have some.
#include <torch/library.h>

#include "allocate.h"
#include "conditional_batch_norm.h"

namespace gankernels::conditional_batch_norm {
namespace {

constexpr auto kNothing = [](int64_t, int64_t) {};

std::tuple<Tensor, Tensor> statistics(const Tensor& x_) {
  const Problem p = problem_of(x_, true, 0, "none", 0);
  const Tensor x = pixels("x", x_, x_, p);
  Tensor mean = at::empty({p.c}, x.options().dtype(at::kDouble)), var = at::empty_like(mean);
  const Forward args = {p,      x.const_data_ptr(), nullptr, nullptr, mean.mutable_data_ptr(), var.mutable_data_ptr(),
                        nullptr};
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    on_stream(p, mean, 0, [&](void* workspace, void* stream) { return cuda::statistics(args, workspace, stream); });
    return {mean, var};
  }
#endif
  const cpu::Passes& pass = cpu::passes(p.dtype, p.activation);
  const Tensor partial = partials(p, mean, 0);
  void* partial_ = partial.mutable_data_ptr();
  run(
      p, Part::kSums, [&](int64_t begin, int64_t end) { pass.statistics(args, partial_, begin, end); },
      [&](int64_t begin, int64_t end) { pass.merge_statistics_in_double(args, partial_, begin, end); }, kNothing);
  return {mean, var};
}

Tensor backward_sums(const Tensor& dy_, const Tensor& x_, const Tensor& gain_, const Tensor& bias_,
                     const std::optional<Tensor>& labels_, const Tensor& mean_, const Tensor& var_, double eps,
                     std::string_view activation, double slope) {
  Problem p = problem_of(x_, true, eps, activation, slope);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               mean = small("mean", mean_, x, {p.c}), var = small("var", var_, x, {p.c});
  Tensor sums = row_sums(p, gain, {p.rows(), p.c, cpu::kPartials[1]});
  if (x.numel() == 0) return sums.zero_();
  const Backward args = {p,
                         dy.const_data_ptr(),
                         x.const_data_ptr(),
                         gain.const_data_ptr(),
                         bias.const_data_ptr(),
                         mean.const_data_ptr(),
                         var.const_data_ptr(),
                         nullptr,
                         nullptr,
                         nullptr};
  void* sums_ = sums.mutable_data_ptr();
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    on_stream(p, gain, 1,
              [&](void* workspace, void* stream) { return cuda::backward_sums(args, sums_, workspace, stream); });
    return sums;
  }
#endif
  const cpu::Passes& pass = cpu::passes(p.dtype, p.activation);
  const Tensor partial = partials(p, gain, 1);
  void* partial_ = partial.mutable_data_ptr();
  run(
      p, Part::kSums, [&](int64_t begin, int64_t end) { pass.backward_sums(args, partial_, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward_fold(p, partial_, sums_, begin, end); }, kNothing);
  return sums;
}

Tensor backward_apply(const Tensor& dy_, const Tensor& x_, const Tensor& gain_, const Tensor& bias_,
                      const std::optional<Tensor>& labels_, const Tensor& mean_, const Tensor& var_,
                      const Tensor& terms_, double eps, std::string_view activation, double slope) {
  Problem p = problem_of(x_, true, eps, activation, slope);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               mean = small("mean", mean_, x, {p.c}), var = small("var", var_, x, {p.c}),
               terms = small("terms", terms_, x, {cpu::kTerms[1], p.c});
  Tensor dx = empty_like_pixels(x);
  if (x.numel() == 0) return dx;
  const Backward args = {p,
                         dy.const_data_ptr(),
                         x.const_data_ptr(),
                         gain.const_data_ptr(),
                         bias.const_data_ptr(),
                         mean.const_data_ptr(),
                         var.const_data_ptr(),
                         dx.mutable_data_ptr(),
                         nullptr,
                         nullptr};
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    on_stream(p, gain, 1, [&](void* workspace, void* stream) {
      return cuda::backward_apply(args, terms.const_data_ptr(), workspace, stream);
    });
    return dx;
  }
#endif
  const cpu::Passes& pass = cpu::passes(p.dtype, p.activation);
  run(p, Part::kApply, kNothing, kNothing,
      [&](int64_t begin, int64_t end) { pass.backward(args, terms.const_data_ptr(), begin, end); });
  return dx;
}

Tensor backward_backward_sums(const Tensor& ddx_, const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                              const Tensor& bias_, const std::optional<Tensor>& labels_, const Tensor& mean_,
                              const Tensor& var_, double eps, std::string_view activation, double slope) {
  Problem p = problem_of(x_, true, eps, activation, slope);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p), ddx = pixels("ddx", ddx_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               mean = small("mean", mean_, x, {p.c}), var = small("var", var_, x, {p.c});
  Tensor sums = row_sums(p, gain, {p.rows(), p.c, cpu::kPartials[2]});
  if (x.numel() == 0) return sums.zero_();
  const BackwardBackward args = {p,
                                 ddx.const_data_ptr(),
                                 nullptr,
                                 nullptr,
                                 dy.const_data_ptr(),
                                 x.const_data_ptr(),
                                 gain.const_data_ptr(),
                                 bias.const_data_ptr(),
                                 mean.const_data_ptr(),
                                 var.const_data_ptr(),
                                 nullptr,
                                 nullptr,
                                 nullptr};
  void* sums_ = sums.mutable_data_ptr();
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    on_stream(p, gain, 2, [&](void* workspace, void* stream) {
      return cuda::backward_backward_sums(args, sums_, workspace, stream);
    });
    return sums;
  }
#endif
  const cpu::Passes& pass = cpu::passes(p.dtype, p.activation);
  const Tensor partial = partials(p, gain, 2);
  void* partial_ = partial.mutable_data_ptr();
  run(
      p, Part::kSums, [&](int64_t begin, int64_t end) { pass.backward_backward_sums(args, partial_, begin, end); },
      [&](int64_t begin, int64_t end) { pass.backward_backward_fold(p, partial_, sums_, begin, end); }, kNothing);
  return sums;
}

std::tuple<Tensor, Tensor> backward_backward_apply(const Tensor& ddx_, const Tensor& ddgain_, const Tensor& ddbias_,
                                                   const Tensor& dy_, const Tensor& x_, const Tensor& gain_,
                                                   const Tensor& bias_, const std::optional<Tensor>& labels_,
                                                   const Tensor& mean_, const Tensor& var_, const Tensor& terms_,
                                                   double eps, std::string_view activation, double slope) {
  Problem p = problem_of(x_, true, eps, activation, slope);
  const auto labels = use_labels(p, labels_, x_, gain_);
  const Tensor x = pixels("x", x_, x_, p), dy = pixels("dy", dy_, x_, p), ddx = pixels("ddx", ddx_, x_, p),
               gain = small("gain", gain_, x, {p.rows(), p.c}), bias = small("bias", bias_, x, {p.rows(), p.c}),
               ddgain = small("ddgain", ddgain_, x, {p.rows(), p.c}),
               ddbias = small("ddbias", ddbias_, x, {p.rows(), p.c}), mean = small("mean", mean_, x, {p.c}),
               var = small("var", var_, x, {p.c}), terms = small("terms", terms_, x, {cpu::kTerms[2], p.c});
  Tensor ddy = empty_like_pixels(x), dx = empty_like_pixels(x);
  if (x.numel() == 0) return {ddy, dx};
  const BackwardBackward args = {p,
                                 ddx.const_data_ptr(),
                                 ddgain.const_data_ptr(),
                                 ddbias.const_data_ptr(),
                                 dy.const_data_ptr(),
                                 x.const_data_ptr(),
                                 gain.const_data_ptr(),
                                 bias.const_data_ptr(),
                                 mean.const_data_ptr(),
                                 var.const_data_ptr(),
                                 ddy.mutable_data_ptr(),
                                 dx.mutable_data_ptr(),
                                 nullptr};
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    on_stream(p, gain, 2, [&](void* workspace, void* stream) {
      return cuda::backward_backward_apply(args, terms.const_data_ptr(), workspace, stream);
    });
    return {ddy, dx};
  }
#endif
  const cpu::Passes& pass = cpu::passes(p.dtype, p.activation);
  run(p, Part::kApply, kNothing, kNothing,
      [&](int64_t begin, int64_t end) { pass.backward_backward(args, terms.const_data_ptr(), begin, end); });
  return {ddy, dx};
}

void register_ops(torch::Library& m) {
  m.impl("conditional_batch_norm_statistics", statistics);
  m.impl("conditional_batch_norm_backward_sums", backward_sums);
  m.impl("conditional_batch_norm_backward_apply", backward_apply);
  m.impl("conditional_batch_norm_backward_backward_sums", backward_backward_sums);
  m.impl("conditional_batch_norm_backward_backward_apply", backward_backward_apply);
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

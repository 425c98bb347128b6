// bias_act for the dispatcher: checks, allocates, and hands pointers to the CPU's passes, spread over at::parallel_for,
// or to the CUDA launchers.
#include "../bias_act.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../cpu/bias_act.h"
#include "allocate.h"
#include "common.h"

#ifdef GANKERNELS_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gankernels::bias_act {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// ---- The CPU ----

// Numbers below which a thread is not worth waking, as ATen's own kernels have it.
constexpr int64_t kGrain = 32768;

int64_t grain(const Problem& p, const cpu::Tiling& t) {
  return at::divup(kGrain * t.tiles, std::max<int64_t>(p.size(), 1));
}

void launch_cpu(const Forward& args, const Tensor&) {
  const cpu::Passes& pass = cpu::passes(args.problem.dtype, args.problem.activation);
  const cpu::Tiling t = cpu::tiling(args.problem);
  at::parallel_for(0, t.tiles, grain(args.problem, t),
                   [&](int64_t begin, int64_t end) { pass.forward(args, begin, end); });
}

// Both backwards: a pass over the tiles, then their sums.
template <class Args, class Pass>
void launch_with_sums(const Args& args, const Tensor& x, Pass&& pass) {
  const Problem& p = args.problem;
  const cpu::Tiling t = cpu::tiling(p);
  Tensor partial;
  if (args.dbias || !is_piecewise_linear(p.activation))
    partial = at::empty({t.slots, p.channels}, x.options().dtype(accumulator_of(x)));
  void* sums = partial.defined() ? partial.mutable_data_ptr() : nullptr;
  at::parallel_for(0, t.tiles, grain(p, t), [&](int64_t begin, int64_t end) { pass(args, sums, begin, end); });
  if (!args.dbias) return;
  at::parallel_for(0, p.channels, at::divup(kGrain, t.slots),
                   [&](int64_t begin, int64_t end) { cpu::sum_slots(p, sums, args.dbias, begin, end); });
}

void launch_cpu(const Backward& args, const Tensor& x) {
  launch_with_sums(args, x, cpu::passes(args.problem.dtype, args.problem.activation).backward);
}
void launch_cpu(const BackwardBackward& args, const Tensor& x) {
  launch_with_sums(args, x, cpu::passes(args.problem.dtype, args.problem.activation).backward_backward);
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

// `x` says where, and in which type.
template <class Args>
void launch(const Args& args, const Tensor& x) {
#ifdef GANKERNELS_WITH_CUDA
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor workspace;
    if constexpr (!std::is_same_v<Args, Forward>)
      if (args.dbias) workspace = at::empty({cuda::workspace_bytes(args.problem)}, x.options().dtype(at::kByte));
    C10_CUDA_CHECK(
        static_cast<cudaError_t>(launch_cuda(args, workspace.defined() ? workspace.mutable_data_ptr() : nullptr,
                                             c10::cuda::getCurrentCUDAStream().stream())));
    return;
  }
#endif
  launch_cpu(args, x);
}

// ---- The ops ----

// With no holes: every number of memory belongs to it once. gankernels/ops/_layout.py has the same rule.
Tensor dense(const Tensor& t) {
  return t.is_non_overlapping_and_dense() ? t : t.clone();
}

bool same_layout(const Tensor& a, const Tensor& b) {
  if (!a.is_non_overlapping_and_dense()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// With like's shape, type and device, in its layout. `like` is dense.
Tensor alike(const char* name, const Tensor& t, const Tensor& like) {
  TORCH_CHECK(t.sizes() == like.sizes(), name, ": got shape ", t.sizes(), ", expected ", like.sizes());
  TORCH_CHECK(t.device() == like.device(), name, ": got device ", t.device(), ", expected ", like.device());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": got dtype ", t.scalar_type(), ", expected ",
              like.scalar_type());
  return same_layout(t, like) ? t : at::empty_like(like).copy_(t);
}

// [C], contiguous, in the accumulation type; undefined for none.
Tensor per_channel(const char* name, const Optional& t, const Tensor& x, int64_t dim) {
  if (!t) return {};
  TORCH_CHECK(t->dim() == 1 && t->size(0) == x.size(dim), name, ": got shape ", t->sizes(), ", expected [", x.size(dim),
              "]");
  TORCH_CHECK(t->device() == x.device(), name, ": got device ", t->device(), ", expected ", x.device());
  const auto type = accumulator_of(x);
  return t->scalar_type() == type && t->is_contiguous() ? *t : t->to(type).contiguous();
}

const void* pointer(const Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

// What every op is told beside its tensors.
struct Arguments {
  std::string_view activation;
  double slope, gain;
  std::optional<double> clamp;
  int64_t dim;
  bool with_dbias;

  // x is dense. Where no channel matters, all of memory is one.
  Problem problem(const Tensor& x, bool per_channel) const {
    TORCH_CHECK(dim >= 0 && dim < x.dim(), "dim: got ", dim, ", expected one of the dimensions of x, from 0 to ",
                x.dim() - 1);
    Problem p = {1,     1,    x.numel(),         dtype_of(x),      activation_of(activation, Activation::kGelu),
                 slope, gain, clamp.value_or(0), clamp.has_value()};
    if (per_channel && x.size(dim) > 1 && x.numel() > 0) {
      p.channels = x.size(dim);
      p.inner = x.stride(dim);
      p.outer = x.numel() / (p.channels * p.inner);
    }
    return p;
  }
};

Tensor forward(const Tensor& x_, const Optional& bias_, std::string_view activation, double slope, double gain,
               std::optional<double> clamp, int64_t dim) {
  const Arguments arguments = {activation, slope, gain, clamp, dim, false};
  const Tensor x = dense(x_);
  const Problem p = arguments.problem(x, bias_.has_value());
  const Tensor bias = per_channel("bias", bias_, x, dim);
  Tensor y = empty_like_pixels(x);
  if (x.numel() > 0) launch(Forward{p, x.const_data_ptr(), pointer(bias), y.mutable_data_ptr()}, x);
  return y;
}

// An output that is not asked for: no numbers.
Tensor nothing(const Tensor& like) {
  return at::empty({0}, like.options());
}

Tensor empty_dbias(const Tensor& x, const Arguments& arguments) {
  const auto options = x.options().dtype(accumulator_of(x));
  if (!arguments.with_dbias) return at::empty({0}, options);
  return x.numel() == 0 ? at::zeros({x.size(arguments.dim)}, options) : at::empty({x.size(arguments.dim)}, options);
}

bool needs_x(const Problem& p) {
  return p.activation != Activation::kNone || p.clamped;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_, const Optional& x_, const Optional& bias_,
                                    std::string_view activation, double slope, double gain, std::optional<double> clamp,
                                    int64_t dim, bool with_dbias) {
  const Arguments arguments = {activation, slope, gain, clamp, dim, with_dbias};
  const Tensor like = dense(x_ ? *x_ : dy_), dy = alike("dy", dy_, like);
  const Problem p = arguments.problem(like, bias_.has_value() || with_dbias);
  TORCH_CHECK(x_ || !needs_x(p), "x: got None, expected a tensor, which the derivative depends on");
  const Tensor bias = per_channel("bias", bias_, like, dim);
  Tensor dx = empty_like_pixels(like), dbias = empty_dbias(like, arguments);
  if (like.numel() == 0) return {dx, dbias};
  launch(Backward{p, dy.const_data_ptr(), needs_x(p) ? like.const_data_ptr() : nullptr, pointer(bias),
                  dx.mutable_data_ptr(), with_dbias ? dbias.mutable_data_ptr() : nullptr},
         like);
  return {dx, dbias};
}

std::tuple<Tensor, Tensor, Tensor> backward_backward(const Tensor& ddx_, const Optional& ddbias_, const Optional& dy_,
                                                     const Optional& x_, const Optional& bias_,
                                                     std::string_view activation, double slope, double gain,
                                                     std::optional<double> clamp, int64_t dim, bool with_dbias) {
  const Arguments arguments = {activation, slope, gain, clamp, dim, with_dbias};
  const Tensor like = dense(x_ ? *x_ : ddx_), ddx = alike("ddx", ddx_, like);
  const Problem p = arguments.problem(like, bias_.has_value() || ddbias_.has_value() || with_dbias);
  TORCH_CHECK(x_ || !needs_x(p), "x: got None, expected a tensor, which the derivative depends on");
  const bool smooth = !is_piecewise_linear(p.activation);
  TORCH_CHECK(dy_ || !smooth, "dy: got None, expected a tensor, which the second derivative depends on");
  TORCH_CHECK(smooth || !with_dbias, "with_dbias: got true, expected false where the second derivative is zero");
  const Tensor dy = smooth ? alike("dy", *dy_, like) : Tensor(), bias = per_channel("bias", bias_, like, dim),
               ddbias = per_channel("ddbias", ddbias_, like, dim);
  Tensor ddy = empty_like_pixels(like), dx = smooth ? empty_like_pixels(like) : nothing(like),
         dbias = empty_dbias(like, arguments);
  if (like.numel() == 0) return {ddy, dx, dbias};
  launch(BackwardBackward{p, ddx.const_data_ptr(), pointer(ddbias), pointer(dy),
                          needs_x(p) ? like.const_data_ptr() : nullptr, pointer(bias), ddy.mutable_data_ptr(),
                          smooth ? dx.mutable_data_ptr() : nullptr, with_dbias ? dbias.mutable_data_ptr() : nullptr},
         like);
  return {ddy, dx, dbias};
}

void register_ops(torch::Library& m) {
  m.impl("bias_act_forward", forward);
  m.impl("bias_act_backward", backward);
  m.impl("bias_act_backward_backward", backward_backward);
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

}  // namespace gankernels::bias_act

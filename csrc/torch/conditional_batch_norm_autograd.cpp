// The autograd formulas of conditional_batch_norm, orders 1 and 2. gankernels/ops/conditional_batch_norm/op.py has the
// same for the Triton family.
#include "autograd.h"

namespace gankernels::conditional_batch_norm {
namespace {

using namespace gankernels::autograd;
using Three = std::tuple<Tensor, Tensor, Tensor>;

struct Formula {
  double eps;
  std::string activation;
  double slope;
};

Three forward_op(const Tensor& x, const Tensor& gain, const Tensor& bias, const Optional& labels, const Optional& mean,
                 const Optional& var, const Formula& f, bool per_sample) {
  static const auto call =
      op<Three(const Tensor&, const Tensor&, const Tensor&, const Optional&, const Optional&, const Optional&, double,
               std::string_view, double, bool)>("gankernels::conditional_batch_norm_forward");
  return call.call(x, gain, bias, labels, mean, var, f.eps, f.activation, f.slope, per_sample);
}

// Of x, gain, bias, labels, mean and var, which both backwards take behind their cotangents.
struct Saved {
  variable_list tensors;
  bool batch_statistics;
  Formula formula;

  void save(AutogradContext* ctx) const {
    ctx->save_for_backward(tensors);
    auto& data = ctx->saved_data;
    data["batch"] = batch_statistics;
    data["eps"] = formula.eps;
    data["activation"] = formula.activation;
    data["slope"] = formula.slope;
  }
  static Saved of(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    return {ctx->get_saved_variables(),
            data["batch"].toBool(),
            {data["eps"].toDouble(), data["activation"].toStringRef(), data["slope"].toDouble()}};
  }
};

Three backward_op(const Tensor& dy, const Saved& s) {
  static const auto call =
      op<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&, const Tensor&,
               const Tensor&, bool, double, std::string_view, double)>("gankernels::conditional_batch_norm_backward");
  const variable_list& t = s.tensors;
  return call.call(dy, t[0], t[1], t[2], or_none(t[3]), t[4], t[5], s.batch_statistics, s.formula.eps,
                   s.formula.activation, s.formula.slope);
}

// s.tensors begins with dy.
Three backward_backward_op(const Tensor& ddx, const Tensor& ddgain, const Tensor& ddbias, const Saved& s) {
  static const auto call =
      op<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
               const Optional&, const Tensor&, const Tensor&, bool, double, std::string_view, double)>(
          "gankernels::conditional_batch_norm_backward_backward");
  const variable_list& t = s.tensors;
  return call.call(ddx, ddgain, ddbias, t[0], t[1], t[2], t[3], or_none(t[4]), t[5], t[6], s.batch_statistics,
                   s.formula.eps, s.formula.activation, s.formula.slope);
}

struct Forward : Function<Forward> {
  // mean and var leave by `all`: they get no cotangents of their own; where they are functions of x, that path is part
  // of x's.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gain, const Tensor& bias,
                        const Optional* labels, const Optional* mean, const Optional* var, const Formula& f,
                        bool per_sample, Three* all) {
    at::AutoDispatchBelowADInplaceOrView below;
    *all = forward_op(x, gain, bias, *labels, *mean, *var, f, per_sample);
    Saved{{x, gain, bias, or_undefined(*labels), std::get<1>(*all), std::get<2>(*all)}, !mean->has_value(), f}.save(
        ctx);
    return std::get<0>(*all);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    auto [dx, dgain, dbias] = backward_op(dy[0], Saved::of(ctx));
    return {dx, dgain, dbias, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct Backward : Function<Backward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& dy, const Tensor& x, const Tensor& gain,
                               const Saved& s) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dgain, dbias] = backward_op(dy, s);
    Saved with_dy = s;
    with_dy.tensors.insert(with_dy.tensors.begin(), dy);
    with_dy.save(ctx);
    return {dx, dgain, dbias};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    auto [ddy, dx, dgain] = backward_backward_op(cotangents[0], cotangents[1], cotangents[2], Saved::of(ctx));
    return {ddy, dx, dgain, Tensor()};
  }
};

Three forward(const Tensor& x, const Tensor& gain, const Tensor& bias, const Optional& labels, const Optional& mean,
              const Optional& var, double eps, std::string_view activation, double slope, bool per_sample) {
  const Formula f = {eps, std::string(activation), slope};
  if (recorded(x, gain, bias)) {
    Three all;
    const Tensor y = Forward::apply(x, gain, bias, &labels, &mean, &var, f, per_sample, &all);
    return {y, std::get<1>(all), std::get<2>(all)};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return forward_op(x, gain, bias, labels, mean, var, f, per_sample);
}

Three backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& bias, const Optional& labels,
               const Tensor& mean, const Tensor& var, bool batch_statistics, double eps, std::string_view activation,
               double slope) {
  const Saved s = {
      {x, gain, bias, or_undefined(labels), mean, var}, batch_statistics, {eps, std::string(activation), slope}};
  if (recorded(dy, x, gain)) {
    const variable_list out = Backward::apply(dy, x, gain, s);
    return {out[0], out[1], out[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op(dy, s);
}

Three backward_backward(const Tensor& ddx, const Tensor& ddgain, const Tensor& ddbias, const Tensor& dy,
                        const Tensor& x, const Tensor& gain, const Tensor& bias, const Optional& labels,
                        const Tensor& mean, const Tensor& var, bool batch_statistics, double eps,
                        std::string_view activation, double slope) {
  const Saved s = {
      {dy, x, gain, bias, or_undefined(labels), mean, var}, batch_statistics, {eps, std::string(activation), slope}};
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return backward_backward_op(ddx, ddgain, ddbias, s);
  };
  if (!recorded(ddx, ddgain, ddbias, dy, x, gain, bias)) return run();
  const variable_list inputs = {ddx, ddgain, ddbias, dy, x, gain, bias};
  const variable_list out = LastOrder::apply(std::string("conditional_batch_norm"), at::TensorList(inputs), [&] {
    auto [ddy, dx, dgain] = run();
    return variable_list{ddy, dx, dgain};
  });
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("conditional_batch_norm_forward", forward);
  m.impl("conditional_batch_norm_backward", backward);
  m.impl("conditional_batch_norm_backward_backward", backward_backward);
}

}  // namespace gankernels::conditional_batch_norm

// The autograd formulas of bias_act, orders 1 and 2. gankernels/ops/bias_act/op.py has the same for the Triton family.
#include "../common.h"
#include "autograd.h"

namespace gankernels::bias_act {
namespace {

using namespace gankernels::autograd;

// What every op is told beside its tensors.
struct Arguments {
  std::string activation;
  double slope, gain;
  std::optional<double> clamp;
  int64_t dim;

  void save(AutogradContext* ctx) const {
    auto& data = ctx->saved_data;
    data["activation"] = activation;
    data["slope"] = slope;
    data["gain"] = gain;
    data["clamp"] = clamp;
    data["dim"] = dim;
  }
  static Arguments saved(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    return {data["activation"].toStringRef(), data["slope"].toDouble(), data["gain"].toDouble(),
            data["clamp"].toOptional<double>(), data["dim"].toInt()};
  }
  bool smooth() const { return activation != "none" && activation != "relu" && activation != "lrelu"; }
};

Tensor forward_op(const Tensor& x, const Optional& bias, const Arguments& a) {
  static const auto call =
      op<Tensor(const Tensor&, const Optional&, std::string_view, double, double, std::optional<double>, int64_t)>(
          "gankernels::bias_act_forward");
  return call.call(x, bias, a.activation, a.slope, a.gain, a.clamp, a.dim);
}

std::tuple<Tensor, Tensor> backward_op(const Tensor& dy, const Optional& x, const Optional& bias, const Arguments& a,
                                       bool with_dbias) {
  static const auto call =
      op<std::tuple<Tensor, Tensor>(const Tensor&, const Optional&, const Optional&, std::string_view, double, double,
                                    std::optional<double>, int64_t, bool)>("gankernels::bias_act_backward");
  return call.call(dy, x, bias, a.activation, a.slope, a.gain, a.clamp, a.dim, with_dbias);
}

std::tuple<Tensor, Tensor, Tensor> backward_backward_op(const Tensor& ddx, const Optional& ddbias, const Optional& dy,
                                                        const Optional& x, const Optional& bias, const Arguments& a,
                                                        bool with_dbias) {
  static const auto call = op<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Optional&, const Optional&, const Optional&, const Optional&, std::string_view, double,
      double, std::optional<double>, int64_t, bool)>("gankernels::bias_act_backward_backward");
  return call.call(ddx, ddbias, dy, x, bias, a.activation, a.slope, a.gain, a.clamp, a.dim, with_dbias);
}

// What backward needs. Where act' depends on the sign of z = x + bias alone, and y = gain act(z) has that sign, y
// serves as x: the next layer keeps it anyway, and x can be freed. A clamped y does not tell |y| = clamp from more.
variable_list saved_for_backward(const Tensor& x, const Optional& bias, const Tensor& y, const Arguments& a) {
  if (a.clamp || a.smooth()) return {x, or_undefined(bias)};
  if (a.activation == "none") return {Tensor(), Tensor()};
  if (a.gain > 0 && (a.activation == "relu" || a.slope > 0)) return {y, Tensor()};
  return {x, or_undefined(bias)};
}

struct Forward : Function<Forward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Optional& bias, const Arguments& a) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor y = forward_op(x, bias, a);
    a.save(ctx);
    if (bias) ctx->saved_data["bias_dtype"] = bias->scalar_type();
    ctx->save_for_backward(saved_for_backward(x, bias, y, a));
    // A penalty on dx comes by here where y was saved, with no cotangent.
    ctx->set_materialize_grads(false);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    if (!dy[0].defined()) return variable_list(3);
    const Arguments a = Arguments::saved(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const auto bias_dtype = ctx->saved_data.find("bias_dtype");
    const bool with_dbias = bias_dtype != ctx->saved_data.end() && ctx->needs_input_grad(1);
    auto [dx, dbias] = backward_op(dy[0], or_none(saved[0]), or_none(saved[1]), a, with_dbias);
    return {dx, with_dbias ? dbias.to(bias_dtype->second.toScalarType()) : Tensor(), Tensor()};
  }
};

struct Backward : Function<Backward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& dy, const Optional& x, const Optional& bias,
                               const Arguments& a, bool with_dbias) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dbias] = backward_op(dy, x, bias, a, with_dbias);
    a.save(ctx);
    auto& data = ctx->saved_data;
    data["with_dbias"] = with_dbias;
    data["shape"] = dy.sym_sizes();
    data["dtype"] = dy.scalar_type();
    ctx->save_for_backward({a.smooth() ? dy : Tensor(), or_undefined(x), or_undefined(bias)});
    // A penalty on dx alone has no cotangent for dbias; a tensor of zeros would be made for each layer.
    ctx->set_materialize_grads(false);
    return {dx, dbias};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const Arguments a = Arguments::saved(ctx);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &x = saved[1], &bias = saved[2];
    const Tensor ddbias = data["with_dbias"].toBool() ? cotangents[1] : Tensor();
    Tensor ddx = cotangents[0];
    if (!ddx.defined() && !ddbias.defined()) return variable_list(5);
    if (!ddx.defined())
      ddx = at::zeros({}, ddbias.options().dtype(data["dtype"].toScalarType()))
                .expand_symint(data["shape"].toSymIntVector());
    const bool with_dbias = a.smooth() && bias.defined() && ctx->needs_input_grad(1 + x.defined());
    auto [ddy, dx, dbias] =
        backward_backward_op(ddx, or_none(ddbias), or_none(dy), or_none(x), or_none(bias), a, with_dbias);
    variable_list gradients = {ddy, Tensor(), Tensor(), Tensor(), Tensor()};
    if (a.smooth()) gradients[1] = dx;
    if (with_dbias) gradients[2] = dbias.to(bias.scalar_type());
    return gradients;
  }
};

Tensor forward(const Tensor& x, const Optional& bias, std::string_view activation, double slope, double gain,
               std::optional<double> clamp, int64_t dim) {
  const Arguments a = {std::string(activation), slope, gain, clamp, dim};
  if (recorded(x, bias)) return Forward::apply(x, bias, a);
  at::AutoDispatchBelowADInplaceOrView below;
  return forward_op(x, bias, a);
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Optional& x, const Optional& bias,
                                    std::string_view activation, double slope, double gain, std::optional<double> clamp,
                                    int64_t dim, bool with_dbias) {
  const Arguments a = {std::string(activation), slope, gain, clamp, dim};
  if (recorded(dy, x, bias)) {
    const variable_list out = Backward::apply(dy, x, bias, a, with_dbias);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op(dy, x, bias, a, with_dbias);
}

std::tuple<Tensor, Tensor, Tensor> backward_backward(const Tensor& ddx, const Optional& ddbias, const Optional& dy,
                                                     const Optional& x, const Optional& bias,
                                                     std::string_view activation, double slope, double gain,
                                                     std::optional<double> clamp, int64_t dim, bool with_dbias) {
  const Arguments a = {std::string(activation), slope, gain, clamp, dim};
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return backward_backward_op(ddx, ddbias, dy, x, bias, a, with_dbias);
  };
  if (!recorded(ddx, ddbias, dy, x, bias)) return run();
  variable_list inputs = {ddx};
  for (const Optional* t : {&ddbias, &dy, &x, &bias})
    if (*t) inputs.push_back(**t);
  const variable_list out = LastOrder::apply(std::string("bias_act"), at::TensorList(inputs), [&] {
    auto [ddy, dx, dbias] = run();
    return variable_list{ddy, dx, dbias};
  });
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("bias_act_forward", forward);
  m.impl("bias_act_backward", backward);
  m.impl("bias_act_backward_backward", backward_backward);
}

}  // namespace gankernels::bias_act

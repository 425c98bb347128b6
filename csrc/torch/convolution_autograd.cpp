// The autograd formulas of the convolution ops. gankernels/ops/_convolution.py has the same for where there is no
// extension, and the table that they follow.
#include "autograd.h"
#include "convolution.h"

namespace gankernels::convolution {
namespace {

using namespace gankernels::autograd;
using at::Tensor;
using autograd::Optional;

void save(AutogradContext* ctx, const Geometry& g) {
  auto& data = ctx->saved_data;
  data["stride"] = g.stride;
  data["padding"] = g.padding;
  data["dilation"] = g.dilation;
  data["transposed"] = g.transposed;
  data["output_padding"] = g.output_padding;
  data["groups"] = g.groups;
}

Geometry saved_geometry(AutogradContext* ctx) {
  auto& data = ctx->saved_data;
  return {data["stride"].toIntVector(), data["padding"].toIntVector(),        data["dilation"].toIntVector(),
          data["transposed"].toBool(),  data["output_padding"].toIntVector(), data["groups"].toInt()};
}

Tensor convolution_op(const Tensor& x, const Tensor& weight, const Optional& bias, const Geometry& g) {
  static const auto call = op<Convolution>("gankernels_library::convolution");
  return call.call(x, weight, bias, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups);
}

Tensor input_gradient_op(const Tensor& dy, const Tensor& weight, c10::SymIntArrayRef x_size, const Geometry& g) {
  static const auto call = op<InputGradient>("gankernels_library::convolution_input_gradient");
  return call.call(dy, weight, x_size, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups);
}

std::tuple<Tensor, Tensor> weight_gradient_op(const Tensor& dy, const Tensor& x, c10::SymIntArrayRef weight_size,
                                              bool with_bias, const Geometry& g) {
  static const auto call = op<WeightGradient>("gankernels_library::convolution_weight_gradient");
  return call.call(dy, x, weight_size, with_bias, g.stride, g.padding, g.dilation, g.transposed, g.output_padding,
                   g.groups);
}

// What the pass that runs now asks of tensor argument number `index`: the engine knows, and so nothing is computed that
// nobody takes.
bool asks_for(AutogradContext* ctx, size_t index, bool is_weight = false) {
  return (!is_weight || weight_gradients_wanted) && ctx->needs_input_grad(index);
}

struct Forward : Function<Forward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Optional& bias,
                        const Geometry& g) {
    at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, g);
    ctx->saved_data["x_size"] = x.sym_sizes();
    ctx->saved_data["weight_size"] = weight.sym_sizes();
    ctx->saved_data["with_bias"] = bias.has_value();
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    ctx->set_materialize_grads(false);
    return convolution_op(x, weight, bias, g);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const Tensor& dy = cotangents[0];
    variable_list gradients(4);
    if (!dy.defined()) return gradients;
    auto& data = ctx->saved_data;
    const Geometry g = saved_geometry(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    if (weight.defined() && asks_for(ctx, 0))
      gradients[0] = input_gradient_op(dy, weight, data["x_size"].toSymIntVector(), g);
    const bool with_bias = data["with_bias"].toBool() && asks_for(ctx, 2, true);
    if (x.defined() && asks_for(ctx, 1, true)) {
      auto [dw, db] = weight_gradient_op(dy, x, data["weight_size"].toSymIntVector(), with_bias, g);
      gradients[1] = dw;
      if (with_bias) gradients[2] = db;
    } else if (with_bias) {
      gradients[2] = dy.sum({0, 2, 3});
    }
    return gradients;
  }
};

struct InputGradientOf : Function<InputGradientOf> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& weight, c10::SymIntArrayRef x_size,
                        const Geometry& g) {
    at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, g);
    ctx->saved_data["weight_size"] = weight.sym_sizes();
    ctx->save_for_backward({weight.requires_grad() ? dy : Tensor(), dy.requires_grad() ? weight : Tensor()});
    ctx->set_materialize_grads(false);
    return input_gradient_op(dy, weight, x_size, g);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const Tensor& ddx = cotangents[0];
    variable_list gradients(4);
    if (!ddx.defined()) return gradients;
    const Geometry g = saved_geometry(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &weight = saved[1];
    if (weight.defined() && asks_for(ctx, 0)) gradients[0] = convolution_op(ddx, weight, std::nullopt, g);
    if (dy.defined() && asks_for(ctx, 1, true))
      gradients[1] = std::get<0>(
          weight_gradient_op(dy, ddx, ctx->saved_data["weight_size"].toSymIntVector(), /*with_bias=*/false, g));
    return gradients;
  }
};

struct WeightGradientOf : Function<WeightGradientOf> {
  static variable_list forward(AutogradContext* ctx, const Tensor& dy, const Tensor& x, c10::SymIntArrayRef weight_size,
                               bool with_bias, const Geometry& g) {
    at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, g);
    auto& data = ctx->saved_data;
    data["dy_size"] = dy.sym_sizes();
    data["x_size"] = x.sym_sizes();
    data["with_bias"] = with_bias;
    ctx->save_for_backward({x.requires_grad() ? dy : Tensor(), dy.requires_grad() ? x : Tensor()});
    // A penalty on dw alone has no cotangent for db.
    ctx->set_materialize_grads(false);
    auto [dw, db] = weight_gradient_op(dy, x, weight_size, with_bias, g);
    return {dw, db};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    auto& data = ctx->saved_data;
    const Geometry g = saved_geometry(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &x = saved[1];
    const Tensor& ddw = cotangents[0];
    const Tensor ddb = data["with_bias"].toBool() ? cotangents[1] : Tensor();
    variable_list gradients(5);
    if (asks_for(ctx, 0)) {
      if (ddw.defined())
        gradients[0] = convolution_op(x, ddw, or_none(ddb), g);
      else if (ddb.defined())
        gradients[0] = ddb.view({-1, 1, 1}).expand_symint(data["dy_size"].toSymIntVector());
    }
    if (dy.defined() && ddw.defined() && asks_for(ctx, 1))
      gradients[1] = input_gradient_op(dy, ddw, data["x_size"].toSymIntVector(), g);
    return gradients;
  }
};

Geometry geometry(GANKERNELS_GEOMETRY) {
  return {stride.vec(), padding.vec(), dilation.vec(), transposed, output_padding.vec(), groups};
}

Tensor convolution(const Tensor& x, const Tensor& weight, const Optional& bias, GANKERNELS_GEOMETRY) {
  const Geometry g = geometry(stride, padding, dilation, transposed, output_padding, groups);
  if (recorded(x, weight, bias)) return Forward::apply(x, weight, bias, g);
  at::AutoDispatchBelowADInplaceOrView below;
  return convolution_op(x, weight, bias, g);
}

Tensor input_gradient(const Tensor& dy, const Tensor& weight, c10::SymIntArrayRef x_size, GANKERNELS_GEOMETRY) {
  const Geometry g = geometry(stride, padding, dilation, transposed, output_padding, groups);
  if (recorded(dy, weight)) return InputGradientOf::apply(dy, weight, x_size, g);
  at::AutoDispatchBelowADInplaceOrView below;
  return input_gradient_op(dy, weight, x_size, g);
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& dy, const Tensor& x, c10::SymIntArrayRef weight_size,
                                           bool with_bias, GANKERNELS_GEOMETRY) {
  const Geometry g = geometry(stride, padding, dilation, transposed, output_padding, groups);
  if (recorded(dy, x)) {
    const variable_list out = WeightGradientOf::apply(dy, x, weight_size, with_bias, g);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return weight_gradient_op(dy, x, weight_size, with_bias, g);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels_library, Autograd, m) {
  m.impl("convolution", convolution);
  m.impl("convolution_input_gradient", input_gradient);
  m.impl("convolution_weight_gradient", weight_gradient);
}

}  // namespace gankernels::convolution

// The autograd formulas of spectral_norm, orders 1 and 2. gankernels/ops/spectral_norm/op.py has the same for the
// Triton family. Weights that no gradient reaches, or that want none, cost nothing: each formula picks the others.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/variable.h>

#include "autograd.h"

namespace gankernels::spectral_norm {
namespace {

using namespace gankernels::autograd;
using at::TensorList;
using Tensors = std::vector<Tensor>;
using Pair = std::tuple<Tensors, Tensors>;
using Results = std::tuple<Tensors, Tensors, Tensors, Tensor>;

Results forward_op(TensorList weights, TensorList u, TensorList v, at::IntArrayRef dims, int64_t iterations, double eps,
                   at::ScalarType out_dtype) {
  static const auto call =
      op<Results(TensorList, TensorList, TensorList, at::IntArrayRef, int64_t, double, at::ScalarType)>(
          "gankernels::spectral_norm_forward");
  return call.call(weights, u, v, dims, iterations, eps, out_dtype);
}

// What a backward takes behind its cotangents, but for the weights: constants.
struct State {
  Tensors u, v;
  Tensor sigma;
  std::vector<int64_t> dims;
};

Tensors backward_op(TensorList dy, TensorList weights, const State& s) {
  static const auto call = op<Tensors(TensorList, TensorList, TensorList, TensorList, const Tensor&, at::IntArrayRef)>(
      "gankernels::spectral_norm_backward");
  return call.call(dy, weights, s.u, s.v, s.sigma, s.dims);
}

void backward_op_(TensorList dy, TensorList weights, const State& s) {
  static const auto call = op<void(TensorList, TensorList, TensorList, TensorList, const Tensor&, at::IntArrayRef)>(
      "gankernels::spectral_norm_backward_");
  call.call(dy, weights, s.u, s.v, s.sigma, s.dims);
}

Pair backward_backward_op(TensorList ddweights, TensorList dy, TensorList weights, const State& s) {
  static const auto call =
      op<Pair(TensorList, TensorList, TensorList, TensorList, TensorList, const Tensor&, at::IntArrayRef)>(
          "gankernels::spectral_norm_backward_backward");
  return call.call(ddweights, dy, weights, s.u, s.v, s.sigma, s.dims);
}

// Lists of as many tensors as there are weights, and the state, in a context.
void save(AutogradContext* ctx, std::initializer_list<TensorList> lists, const State& s) {
  variable_list saved;
  for (const TensorList list : lists) saved.insert(saved.end(), list.begin(), list.end());
  saved.insert(saved.end(), s.u.begin(), s.u.end());
  saved.insert(saved.end(), s.v.begin(), s.v.end());
  saved.push_back(s.sigma);
  ctx->save_for_backward(std::move(saved));
  ctx->saved_data["dims"] = s.dims;
  ctx->set_materialize_grads(false);
}

// The same back, of some weights.
class Saved {
 public:
  Saved(AutogradContext* ctx, std::vector<size_t> indices)
      : tensors_(ctx->get_saved_variables()),
        dims_(ctx->saved_data["dims"].toIntVector()),
        indices_(std::move(indices)) {}

  Tensors list(size_t place) const { return pick(TensorList(tensors_).slice(place * dims_.size(), dims_.size())); }
  Tensors pick(TensorList list) const {
    Tensors picked;
    for (const size_t i : indices_) picked.push_back(list[i]);
    return picked;
  }
  // Which stands behind `lists` lists.
  State state(size_t lists) const {
    State s = {list(lists), list(lists + 1), tensors_.back(), {}};
    for (const size_t i : indices_) s.dims.push_back(dims_[i]);
    if (indices_.size() == dims_.size()) return s;
    Tensors sigmas;
    for (const size_t i : indices_) sigmas.push_back(s.sigma.select(0, static_cast<int64_t>(i)));
    s.sigma = at::stack(sigmas);
    return s;
  }
  // Gradients of the picked to where those stand among `gradients`.
  void put(const Tensors& of_picked, variable_list& gradients, size_t place) const {
    for (size_t k = 0; k < indices_.size(); ++k) gradients[place * dims_.size() + indices_[k]] = of_picked[k];
  }

 private:
  variable_list tensors_;
  std::vector<int64_t> dims_;
  std::vector<size_t> indices_;
};

// Whether dW may take the place of dy: nothing else can see dy's memory, which torch has allocated, and every number of
// it lies where the same number of the weight does. AccumulateGrad has the same rule for keeping a gradient as it is.
bool may_overwrite(const Tensor& dy, const Tensor& weight) {
  return torch::autograd::impl::is_tensor_stealable(dy) && dy.layout() == at::kStrided &&
         !at::isTensorSubclassLike(dy) && !dy.is_neg() && dy.storage().use_count() == 1 && dy.storage().resizable() &&
         dy.scalar_type() == weight.scalar_type() && dy.sizes() == weight.sizes() && dy.strides() == weight.strides() &&
         weight.is_non_overlapping_and_dense();
}

struct Forward : Function<Forward> {
  // u, v and sigma leave by `all`: they get no cotangents; sigma's path is part of the weight's.
  static variable_list forward(AutogradContext* ctx, TensorList weights, const std::function<Results()>& run,
                               const std::vector<int64_t>* dims, Results* all) {
    at::AutoDispatchBelowADInplaceOrView below;
    *all = run();
    const auto& [y, u, v, sigma] = *all;
    save(ctx, {weights}, {u, v, sigma, *dims});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    std::vector<size_t> in_place, others;
    const variable_list saved = ctx->get_saved_variables();
    for (size_t i = 0; i < dy.size(); ++i) {
      if (!dy[i].defined() || !ctx->needs_input_grad(i)) continue;
      const bool own = !at::GradMode::is_enabled() && may_overwrite(dy[i], saved[i]);
      (own ? in_place : others).push_back(i);
    }
    variable_list gradients(dy.size() + 3);
    if (!in_place.empty()) {
      const Saved picked(ctx, std::move(in_place));
      const Tensors dw = picked.pick(dy);
      backward_op_(dw, picked.list(0), picked.state(1));
      picked.put(dw, gradients, 0);
    }
    if (!others.empty()) {
      const Saved picked(ctx, std::move(others));
      picked.put(backward_op(picked.pick(dy), picked.list(0), picked.state(1)), gradients, 0);
    }
    return gradients;
  }
};

struct Backward : Function<Backward> {
  static variable_list forward(AutogradContext* ctx, TensorList dy, TensorList weights, const State& s) {
    at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, {dy, weights}, s);
    return backward_op(dy, weights, s);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& ddweights) {
    std::vector<size_t> indices;
    for (size_t i = 0; i < ddweights.size(); ++i)
      if (ddweights[i].defined()) indices.push_back(i);
    variable_list gradients(2 * ddweights.size() + 1);
    if (indices.empty()) return gradients;
    const Saved saved(ctx, std::move(indices));
    auto [ddy, dweights] = backward_backward_op(saved.pick(ddweights), saved.list(0), saved.list(1), saved.state(2));
    saved.put(ddy, gradients, 0);
    saved.put(dweights, gradients, 1);
    return gradients;
  }
};

Results forward(TensorList weights, TensorList u, TensorList v, at::IntArrayRef dims_, int64_t iterations, double eps,
                at::ScalarType out_dtype) {
  const auto run = [&] { return forward_op(weights, u, v, dims_, iterations, eps, out_dtype); };
  if (recorded(weights)) {
    Results all;
    const std::vector<int64_t> dims = dims_.vec();
    std::get<0>(all) = Forward::apply(weights, std::function<Results()>(run), &dims, &all);
    return all;
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return run();
}

Tensors backward(TensorList dy, TensorList weights, TensorList u, TensorList v, const Tensor& sigma,
                 at::IntArrayRef dims) {
  const State s = {u.vec(), v.vec(), sigma, dims.vec()};
  if (recorded(dy, weights)) return Backward::apply(dy, weights, s);
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op(dy, weights, s);
}

Pair backward_backward(TensorList ddweights, TensorList dy, TensorList weights, TensorList u, TensorList v,
                       const Tensor& sigma, at::IntArrayRef dims) {
  const State s = {u.vec(), v.vec(), sigma, dims.vec()};
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return backward_backward_op(ddweights, dy, weights, s);
  };
  if (!recorded(ddweights, dy, weights)) return run();
  variable_list inputs = ddweights.vec();
  for (const TensorList list : {dy, weights}) inputs.insert(inputs.end(), list.begin(), list.end());
  const variable_list out = LastOrder::apply(std::string("spectral_norm"), TensorList(inputs), [&] {
    auto [ddy, dweights] = run();
    ddy.insert(ddy.end(), dweights.begin(), dweights.end());
    return ddy;
  });
  const auto middle = out.begin() + static_cast<int64_t>(weights.size());
  return {Tensors(out.begin(), middle), Tensors(middle, out.end())};
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("spectral_norm_forward", forward);
  m.impl("spectral_norm_backward", backward);
  m.impl("spectral_norm_backward_backward", backward_backward);
}

}  // namespace gankernels::spectral_norm

// What the autograd formulas of the native ops share. They are registered under the dispatcher's Autograd key, each
// calls the next order through the dispatcher, and so AOTAutograd, double backward and hooks see registered ops only.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <string>

namespace gankernels::autograd {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

// A registered op, by its C++ signature.
template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline bool requires_grad(const Tensor& t) {
  return t.requires_grad();
}
inline bool requires_grad(const Optional& t) {
  return t && t->requires_grad();
}

inline bool requires_grad(at::TensorList list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) { return t.requires_grad(); });
}

// Whether a call must be remembered.
template <class... Tensors>
bool recorded(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

inline Tensor or_undefined(const Optional& t) {
  return t.value_or(Tensor());
}
inline Optional or_none(const Tensor& t) {
  return t.defined() ? Optional(t) : std::nullopt;
}

// The last order: what `run` returns has a gradient that says that there is none.
struct LastOrder : Function<LastOrder> {
  static variable_list forward(AutogradContext* ctx, const std::string& op, at::TensorList,
                               const std::function<variable_list()>& run) {
    ctx->saved_data["op"] = op;
    return run();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    TORCH_CHECK(false, ctx->saved_data["op"].toStringRef(),
                ": third-order gradients are not implemented; pass impl='reference' for them");
  }
};

}  // namespace gankernels::autograd

// The activations and their first two derivatives, for every kernel on the CPU and the GPU: the one table. At kinks, at
// infinity and for NaN they do what PyTorch's do. No torch headers.
//
// V is a number or a vector of numbers. Math has the functions that smooth activations are made of.
#pragma once

#include <cmath>

#include "common.h"

namespace gankernels {

// On numbers; csrc/cpu/math.h has the same on vectors.
struct StandardMath {
  template <class A>
  static GK_HOST_DEVICE A sigmoid(A z) {
    return 1 / (1 + std::exp(-z));
  }
  template <class A>
  static GK_HOST_DEVICE A tanh(A z) {
    return std::tanh(z);
  }
  // log(1 + exp(z)), for z up to kSoftplusThreshold.
  template <class A>
  static GK_HOST_DEVICE A softplus(A z) {
    return std::log1p(std::exp(z));
  }
  template <class A>
  static GK_HOST_DEVICE A normal_cdf(A z) {
    return A(0.5) * std::erfc(z * A(-0.70710678118654752440));
  }
  template <class A>
  static GK_HOST_DEVICE A normal_pdf(A z) {
    return A(0.39894228040143267794) * std::exp(z * z * A(-0.5));
  }
};

// torch.nn.functional.softplus's: above it, softplus is the identity.
inline constexpr float kSoftplusThreshold = 20;

// Whether the second derivative is zero wherever it exists, so that the derivative is a function of z's sign.
constexpr bool is_piecewise_linear(Activation activation) {
  return activation <= Activation::kLeakyRelu;
}

// sigmoid(z) and its derivative, by way of the smaller of sigmoid(z) and sigmoid(-z): 1 - sigmoid(z) has no correct
// digit where z is large.
template <class V>
struct Logistic {
  V value, slope;

  template <class Math>
  static GK_HOST_DEVICE Logistic of(V z, Math) {
    const V smaller = Math::sigmoid(z > V{} ? -z : z), larger = V{} + 1.0f - smaller;
    return {z > V{} ? larger : smaller, smaller * larger};
  }
};

// act(z). relu sends NaN through and 0 to 0, as torch's does; no slope stands in for it, since 0 * inf is NaN.
template <Activation kAct, class Math = StandardMath, class V>
GK_HOST_DEVICE V activate(V z, V slope) {
  if constexpr (kAct == Activation::kRelu) return z <= V{} ? V{} : z;
  if constexpr (kAct == Activation::kLeakyRelu) return z > V{} ? z : z * slope;
  if constexpr (kAct == Activation::kTanh) return Math::tanh(z);
  if constexpr (kAct == Activation::kSigmoid) return Math::sigmoid(z);
  if constexpr (kAct == Activation::kSilu) return z * Math::sigmoid(z);
  if constexpr (kAct == Activation::kSoftplus) return z > V{} + kSoftplusThreshold ? z : Math::softplus(z);
  if constexpr (kAct == Activation::kGelu) return z * Math::normal_cdf(z);
  return z;
}

// act'(z) g.
template <Activation kAct, class Math = StandardMath, class V>
GK_HOST_DEVICE V activate_backward(V z, V g, V slope) {
  const V four = V{} + 4.0f;
  if constexpr (kAct == Activation::kRelu) return z <= V{} ? V{} : g;
  if constexpr (kAct == Activation::kLeakyRelu) return z > V{} ? g : g * slope;
  // tanh(z) = 2 sigmoid(2 z) - 1
  if constexpr (kAct == Activation::kTanh) return g * (four * Logistic<V>::of(z + z, Math()).slope);
  if constexpr (kAct == Activation::kSigmoid) return g * Logistic<V>::of(z, Math()).slope;
  if constexpr (kAct == Activation::kSilu) {
    const auto s = Logistic<V>::of(z, Math());
    return g * (s.value + z * s.slope);
  }
  if constexpr (kAct == Activation::kSoftplus) return z > V{} + kSoftplusThreshold ? g : g * Math::sigmoid(z);
  if constexpr (kAct == Activation::kGelu) return g * (Math::normal_cdf(z) + z * Math::normal_pdf(z));
  return g;
}

// act''(z) g.
template <Activation kAct, class Math = StandardMath, class V>
GK_HOST_DEVICE V activate_backward_backward(V z, V g) {
  const V one = V{} + 1.0f, two = V{} + 2.0f, eight = V{} + 8.0f;
  if constexpr (kAct == Activation::kTanh) {
    return g * (-eight * Logistic<V>::of(z + z, Math()).slope * Math::tanh(z));
  }
  if constexpr (kAct == Activation::kSigmoid) {
    const auto s = Logistic<V>::of(z, Math());
    return g * (s.slope * (one - two * s.value));
  }
  if constexpr (kAct == Activation::kSilu) {
    const auto s = Logistic<V>::of(z, Math());
    return g * (s.slope * (two + z * (one - two * s.value)));
  }
  if constexpr (kAct == Activation::kSoftplus) {
    return z >= V{} + kSoftplusThreshold ? V{} : g * Logistic<V>::of(z, Math()).slope;
  }
  if constexpr (kAct == Activation::kGelu) return g * (Math::normal_pdf(z) * (two - z * z));
  return V{};
}

}  // namespace gankernels

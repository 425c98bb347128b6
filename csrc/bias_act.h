// Bias, activation, gain and clamp in one pass, orders 0 to 2: the formulas, and what the launchers take. No torch
// headers. Derivation: docs/ops.
//
//   y = clamp(gain act(z)),   z = x + bias[c],   clamp(v) = min(max(v, -clamp), clamp)
#pragma once

#include "activation.h"

namespace gankernels::bias_act {

// Memory holds [outer, channels, inner] numbers, one behind the other: any dense layout of any number of dimensions.
// Where nothing depends on the channel, all of it may be one.
struct Problem {
  int64_t outer, channels, inner;
  DType dtype;  // of all that has x's shape; everything else is in its accumulation type
  Activation activation;
  double slope, gain, clamp;
  bool clamped;

  int64_t size() const { return outer * channels * inner; }
};

struct Forward {
  Problem problem;
  const void *x, *bias;  // bias [C], or null for none
  void* y;
};

// x is null where the derivative is a constant: no activation, no clamp. dbias [C] is null where it is not wanted.
struct Backward {
  Problem problem;
  const void *dy, *x, *bias;
  void *dx, *dbias;
};

// The vector-Jacobian product of Backward: cotangents ddx of dx and ddbias [C] of dbias in, those of dy, x and bias
// out. Where the activation is piecewise linear the last two are zero: dy, dx and dbias are not used, and x may be null
// as above. ddbias null is zero.
struct BackwardBackward {
  Problem problem;
  const void *ddx, *ddbias, *dy, *x, *bias;
  void *ddy, *dx, *dbias;
};

// ---- The formulas ----  for V a number or a vector of numbers, A its type of number

template <class A>
struct Constants {
  A slope, gain, clamp;
  bool clamped;

  explicit GK_HOST_DEVICE Constants(const Problem& p)
      : slope(A(p.slope)), gain(A(p.gain)), clamp(A(p.clamp)), clamped(p.clamped) {}
};

// What lrelu multiplies by, the gain with it.
template <class V, class A>
GK_HOST_DEVICE V scale_of(V z, const Constants<A>& k) {
  const V positive = V{} + k.gain, negative = V{} + k.gain * k.slope;
  return z > V{} ? positive : negative;
}

// gain act(z).
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V scaled(V z, const Constants<A>& k) {
  if constexpr (kAct == Activation::kLeakyRelu) return z * scale_of(z, k);
  return activate<kAct, Math>(z, V{} + k.slope) * k.gain;
}

// gain act'(z) g.
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V scaled_backward(V z, V g, const Constants<A>& k) {
  if constexpr (kAct == Activation::kLeakyRelu) return g * scale_of(z, k);
  return activate_backward<kAct, Math>(z, g * k.gain, V{} + k.slope);
}

// y(z).
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V forward(V z, const Constants<A>& k) {
  const V v = scaled<kAct, Math>(z, k);
  if (!k.clamped) return v;
  const V most = V{} + k.clamp, bounded = v > most ? most : v;  // NaN goes through
  return bounded < -most ? -most : bounded;
}

// g where |gain act(z)| <= clamp, else 0.
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V within(V z, V g, const Constants<A>& k) {
  if (!k.clamped) return g;
  const V v = scaled<kAct, Math>(z, k), most = V{} + k.clamp;
  return (v >= -most) & (v <= most) ? g : V{};
}

// dz = gain act'(z) dy.
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V backward(V z, V dy, const Constants<A>& k) {
  return scaled_backward<kAct, Math>(z, within<kAct, Math>(z, dy, k), k);
}

// With a = ddx + ddbias[c]:   ddy = gain act'(z) a.
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V second_ddy(V z, V a, const Constants<A>& k) {
  return within<kAct, Math>(z, scaled_backward<kAct, Math>(z, a, k), k);
}

// And dz = gain act''(z) dy a.
template <Activation kAct, class Math, class V, class A>
GK_HOST_DEVICE V second_dz(V z, V a, V dy, const Constants<A>& k) {
  return activate_backward_backward<kAct, Math>(z, within<kAct, Math>(z, dy, k) * k.gain * a);
}

// ---- Launchers ----  asynchronous on `stream` (a cudaStream_t); `workspace` is at least workspace_bytes long, aligned
// to 16, and need not be cleared. They return a cudaError_t.
namespace cuda {
int64_t workspace_bytes(const Problem& problem);
int forward(const Forward& args, void* workspace, void* stream);
int backward(const Backward& args, void* workspace, void* stream);
int backward_backward(const BackwardBackward& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::bias_act

// Spectral normalisation of all weights of a model, orders 0 to 2: the formulas, and what the launchers take. No torch
// headers. Miyato et al., arXiv 1802.05957, section 2.1 and algorithm 1. Derivation: docs/ops/spectral_norm.md.
//
//   t = W v,   u = t / max(|t|, eps),   s = W^T u,   v = s / max(|s|, eps)      one power iteration
//   sigma = u^T W v = |s|^2 / max(|s|, eps),   y = W / sigma
//
// u and v are constants of the derivatives. With <A, B> the sum of all products of elements:
//
//   order 1:  c = <dy, W> / sigma,   dW = (dy - c u v^T) / sigma
//   order 2, for the cotangent a of dW, with b = u^T a v, m = <a, dy>:
//             ddy = (a - b W / sigma) / sigma,   dW = ((2 b c - m) u v^T / sigma - b dy / sigma) / sigma
#pragma once

#include "common.h"

namespace gankernels::spectral_norm {

// W [h, w] as it lies in memory: `rows` runs of `columns` numbers. A vector `along` a run has `columns` elements, one
// `across` the runs has rows * inner, and every number of W stands for one pair of elements of u and v:
//
//   W(r, c)  is the factor of  across[r * inner + c % inner] * along[c]
//
// Where dim is 0, a run is a row of W, inner is 1, across is u and along is v, in the order of memory. Otherwise
// (`transposed`) across is v, and along is u with every element `inner` times.
struct Matrix {
  int64_t rows, columns, inner;
  int64_t channels, positions;  // not transposed: the order of v in memory is [positions, channels]
  bool transposed;

  GK_HOST_DEVICE int64_t size() const { return rows * columns; }
  GK_HOST_DEVICE int64_t across() const { return rows * inner; }

  // The element of v, or of u where transposed, that along[c] is.
  GK_HOST_DEVICE int64_t of_along(int64_t c) const {
    return transposed ? c / inner : c % channels * positions + c / channels;
  }
};

// x / max(|x|, eps) of a vector, as torch.nn.functional.normalize has it. NaN stays NaN.
template <class A>
GK_HOST_DEVICE A at_least(A norm, A eps) {
  return norm < eps ? eps : norm;
}

// u^T W v, where v is W^T u normalised. A norm that is not finite makes it NaN, as the product would.
template <class A>
GK_HOST_DEVICE A sigma_of(A norm, A eps) {
  return norm * (norm / at_least(norm, eps));
}

// ---- Order 1 ----  dW = (dy - of_uv u v^T) / sigma
// ---- Order 2 ----  ddy = (a - of_w W) / sigma,   dW = (of_uv u v^T - of_dy dy) / sigma
template <class A>
struct Terms {
  A sigma, of_uv, of_w, of_dy;
};

template <class A>
GK_HOST_DEVICE Terms<A> backward_terms(A sigma, A dy_w) {
  return {sigma, dy_w / sigma, 0, 0};
}

template <class A>
GK_HOST_DEVICE Terms<A> backward_backward_terms(A sigma, A dy_w, A a_uv, A a_dy) {
  const A share = a_uv / sigma;
  return {sigma, (2 * a_uv * (dy_w / sigma) - a_dy) / sigma, share, share};
}

// One weight and what belongs to it. u and v are [h] and [w] in torch's order and, like sigma, in the accumulation
// type. W, a and dW have one element type, y, dy and ddy another or the same; all six lie in memory as the matrix says.
struct Forward {
  Matrix matrix;
  const void *w, *u0, *v0;  // u0 is read without iterations alone
  void *u, *v, *sigma, *y;  // u and v must not overlap u0 and v0
};

struct Backward {
  Matrix matrix;
  const void *dy, *w, *u, *v, *sigma;
  void* dw;
};

// The vector-Jacobian product of Backward: the cotangent a of its output in, those of dy and W out.
struct BackwardBackward {
  Matrix matrix;
  const void *a, *dy, *w, *u, *v, *sigma;
  void *ddy, *dw;
};

// What is the same for all weights of a call. Without iterations, sigma is u0^T W v0.
struct Options {
  DType weight, output;
  int64_t iterations;
  double eps;
};

// ---- Launchers ----  asynchronous on `stream` (a cudaStream_t), for all `count` weights; `workspace` is at least
// workspace_bytes long, aligned to 16, and need not be cleared. They return a cudaError_t.
namespace cuda {
int64_t workspace_bytes(const Options& options, const Forward* layers, int count);
int64_t workspace_bytes(const Options& options, const Backward* layers, int count);
int64_t workspace_bytes(const Options& options, const BackwardBackward* layers, int count);
int launch(const Options& options, const Forward* layers, int count, void* workspace, void* stream);
int launch(const Options& options, const Backward* layers, int count, void* workspace, void* stream);
int launch(const Options& options, const BackwardBackward* layers, int count, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::spectral_norm

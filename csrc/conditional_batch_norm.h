// Conditional batch normalisation, orders 0 to 2: the formulas, and what the launchers take. No torch headers.
//
//   y = act(z),   z = (x - mean) * scale + bias,   scale[n,c] = gain[n,c] * rstd[c],   rstd = 1 / sqrt(var + eps)
//
// Every order is one pass that sums over the pixels of each (n, c), a few operations on [N, C], and one pass that is
// affine in the pixels. The middle step stands here, once, for the CPU and the GPU. Derivation: docs/ops.
#pragma once

#include "activation.h"

namespace gankernels::conditional_batch_norm {

struct Problem {
  int64_t n, c, l;  // samples, channels, pixels (H * W)
  Layout layout;
  DType dtype;  // of all that has pixels; everything else is in its accumulation type
  Activation activation;
  double slope, eps;
  bool batch_statistics;  // mean and var are functions of x; otherwise they are constants

  // Null: row n of gain and bias is sample n's. Else they are tables [classes, C], sample n has row labels[n], and
  // gradients are sums over the samples of a class; rows of classes that the batch has not are not written. On the CPU
  // labels are in range. On the GPU nobody has looked: a sample whose label is not becomes NaN, in y, dx and ddy, and
  // adds to no sum.
  const int64_t* labels = nullptr;  // [N]
  int64_t classes = 0;
  // The samples by label, and within a class by number, so that a class is a run of them. The backwards need it; the
  // CUDA launchers make their own.
  const int64_t* order = nullptr;  // [N]

  // Statistics are those of each sample: mean, var and what else is [C] are [N, C]. In channels_last, without labels,
  // with batch statistics; a contiguous batch of this kind is one sample of N * C channels, which needs no flag.
  bool per_sample = false;
  int64_t batch = 1;  // of how many such problems this is one: the CPU takes them sample by sample

  GK_HOST_DEVICE int64_t statistics() const { return per_sample ? n * c : c; }
  GK_HOST_DEVICE int64_t statistic(int64_t sample, int64_t channel) const {
    return per_sample ? sample * c + channel : channel;
  }
  GK_HOST_DEVICE int64_t rows() const { return labels ? classes : n; }
  GK_HOST_DEVICE int64_t row_of(int64_t sample) const { return labels ? labels[sample] : sample; }
  GK_HOST_DEVICE int64_t sample_at(int64_t place) const { return labels ? order[place] : place; }
  // Whether a run begins at this place of the order.
  GK_HOST_DEVICE bool begins_row(int64_t place) const {
    return !labels || place == 0 || labels[order[place]] != labels[order[place - 1]];
  }
};

struct Forward {
  Problem problem;
  const void *x, *gain, *bias;  // x has pixels; gain, bias [rows, C], and so are their gradients and cotangents
  void *mean, *var;             // [statistics]: written where batch_statistics, read otherwise; var is biased
  void* y;
};

struct Backward {
  Problem problem;
  const void *dy, *x, *gain, *bias, *mean, *var;
  void *dx, *dgain, *dbias;
};

// The vector-Jacobian product of Backward: cotangents ddx, ddgain, ddbias of its outputs in, those of dy, x, gain out.
// (bias enters Backward through the activation's mask alone, so its cotangent is zero almost everywhere.)
struct BackwardBackward {
  Problem problem;
  const void *ddx, *ddgain, *ddbias, *dy, *x, *gain, *bias, *mean, *var;
  void *ddy, *dx, *dgain;
};

// ---- Order 0 ----

// Count, mean and sum of squared deviations of a set of numbers.
template <class A>
struct Moments {
  A count, mean, m2;
};

// Chan, Golub and LeVeque, "Updating formulae", 1979, equation 2.1: exact for sets far from zero, where
// E[x^2] - E[x]^2 cancels.
template <class A>
GK_HOST_DEVICE Moments<A> merge(Moments<A> a, Moments<A> b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const A count = a.count + b.count;
  const A delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// ---- Order 1 ----  with dz = act'(z) dy and, over the pixels of (n, c), s0 = sum dz, s1 = sum dz (x - mean):
//
//   dbias = s0,   dgain = rstd s1,   dx = scale dz + of_x (x - mean) + of_1
//
// mean_* are averages over all M = N L pixels of the channel.
template <class A>
struct BackwardTerms {
  A of_x, of_1;  // [C]
};

// mean_g = sum_n gain s0 / M,   mean_gx = sum_n gain s1 / M; both 0 where the statistics are constants.
template <class A>
GK_HOST_DEVICE BackwardTerms<A> backward_terms(A rstd, A mean_g, A mean_gx) {
  return {-rstd * rstd * rstd * mean_gx, -rstd * mean_g};
}

// ---- Order 2 ----  with, over the pixels of (n, c), also t0 = sum ddx, t1 = sum ddx (x - mean), u = sum dz ddx:
//
//   ddy   = act'(z) (scale ddx + of_dz (x - mean) + of_mask)
//   dx    = of_ddx ddx + of_dz dz + of_x (x - mean) + of_1
//   dgain = rstd (u - mean_a s0 - rstd mean_ax s1)
template <class A>
struct ChannelMeans {  // averages over the channel's M pixels; all 0 where the statistics are constants
  A g = 0;             // gain dz
  A gx = 0;            // gain dz x_hat
  A a = 0;             // ddx
  A ax = 0;            // ddx x_hat
  A ag = 0;            // ddx gain dz
  A p = 0;             // ddgain dz
  A px = 0;            // ddgain dz x_hat
};

template <class A>
struct ChannelTerms {
  A of_ddx, of_x, of_1;  // [C]
};

template <class A>
struct RowTerms {
  A of_dz, of_mask;  // [rows, C]
};

template <class A>
GK_HOST_DEVICE ChannelTerms<A> channel_terms(A rstd, const ChannelMeans<A>& m) {
  const A rstd2 = rstd * rstd;
  return {-rstd2 * m.gx, -rstd2 * (rstd * (m.ag - m.a * m.g - 3 * m.ax * m.gx) + m.px),
          rstd2 * (m.gx * m.a + m.ax * m.g) - rstd * m.p};
}

template <class A>
GK_HOST_DEVICE RowTerms<A> row_terms(A rstd, A scale, A ddgain, A ddbias, const ChannelMeans<A>& m) {
  return {rstd * (ddgain - scale * m.ax), ddbias - scale * m.a};
}

template <class A>
GK_HOST_DEVICE A second_order_dgain(A rstd, A s0, A s1, A u, const ChannelMeans<A>& m) {
  return rstd * (u - m.a * s0 - rstd * m.ax * s1);
}

// ---- Launchers ----  asynchronous on `stream` (a cudaStream_t); `workspace` is at least workspace_bytes long, aligned
// to 16, and need not be cleared. They return a cudaError_t.
namespace cuda {
int64_t workspace_bytes(const Problem& problem, int order);
int forward(const Forward& args, void* workspace, void* stream);
int backward(const Backward& args, void* workspace, void* stream);
int backward_backward(const BackwardBackward& args, void* workspace, void* stream);

// In parts, for statistics of several ranks: what stands before and behind the middle step, which is the caller's.
// `sums` is [rows, C, 2] (s0, s1) or [rows, C, 5] (s0, s1, t0, t1, u); `terms` is [2, C] (of_x, of_1) or [5, C]
// (of_ddx, of_x, of_1, mean_a, mean_ax), both in the accumulation type; mean and var of `statistics` are double.
// Arguments that a part does not need may be null.
int statistics(const Forward& args, void* workspace, void* stream);
int backward_sums(const Backward& args, void* sums, void* workspace, void* stream);
int backward_apply(const Backward& args, const void* terms, void* workspace, void* stream);
int backward_backward_sums(const BackwardBackward& args, void* sums, void* workspace, void* stream);
int backward_backward_apply(const BackwardBackward& args, const void* terms, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::conditional_batch_norm

// What orders 0 and 1 of conditional batch normalisation do to neighbouring pixels, and order 1's step on [N, C]: once
// for the kernels that walk tiles and for those whose clusters keep the pixels.
#pragma once

#include "conditional_batch_norm.cuh"

namespace gankernels::conditional_batch_norm::cuda {

// ---- Order 0 ----

// Sums over the deviations of a thread's pixels from the first of them: their mean square exceeds the variance of m
// pixels by at most a factor of m, however far from zero x lies.
template <class T, int kLanes>
struct Deviations {
  using A = Accumulator<T>;
  A shift[kLanes], sum[kLanes] = {}, squares[kLanes] = {};

  template <int kWidth>
  __device__ __forceinline__ explicit Deviations(const Vector<T, kWidth>& first) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) shift[k] = static_cast<A>(first.at[k]);
  }

  template <int kWidth>
  __device__ __forceinline__ void add(const Vector<T, kWidth>& xs) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int k = i % kLanes;
      const A deviation = static_cast<A>(xs.at[i]) - shift[k];
      sum[k] += deviation;
      squares[k] += deviation * deviation;
    }
  }

  // Of sample n, channels c and on, and `count` pixels of each; the means as distances from the channels' origins.
  __device__ __forceinline__ void finish(Moments<A> (&moments)[kLanes], const Forward& args, int64_t n, int64_t c,
                                         A count) const {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const A mean = sum[k] / count, m2 = squares[k] - sum[k] * mean;
      moments[k] = {count, shift[k] - origin<T>(args, n, c + k) + mean, m2 < 0 ? A(0) : m2};
    }
  }
};

// y = act(z).
template <Activation kAct, class T, int kWidth, class A, int kLanes>
__device__ __forceinline__ Vector<T, kWidth> normalized(const Vector<T, kWidth>& xs,
                                                        const Normalization<A, kLanes>& norm, A slope) {
  Vector<T, kWidth> ys;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const int k = i % kLanes;
    ys.at[i] = static_cast<T>(activate<kAct>(norm.z(static_cast<A>(xs.at[i]) - norm.mean[k], k), slope));
  }
  return ys;
}

// ---- Order 1 ----

// Neighbouring elements of the two tensors that it reads.
template <class T, int kWidth>
struct Pixels {
  Vector<T, kWidth> dy, x;
};

template <class Access>
__device__ __forceinline__ auto load_pixels(const Backward& args, int64_t offset) {
  using T = typename Access::Element;
  constexpr int kWidth = Access::kWidth;
  return Pixels<T, kWidth>{load<kWidth>(static_cast<const T*>(args.dy) + offset),
                           load<kWidth>(static_cast<const T*>(args.x) + offset)};
}

// Calls use(i, k, deviation, dz) for each pixel, with its lane, x - mean and dz = act'(z) dy.
template <Activation kAct, class T, int kWidth, class A, int kLanes, class Use>
__device__ __forceinline__ void for_each_dz(const Pixels<T, kWidth>& pixels, const Normalization<A, kLanes>& norm,
                                            A slope, Use use) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const int k = i % kLanes;
    const A deviation = static_cast<A>(pixels.x.at[i]) - norm.mean[k];
    use(i, k, deviation, activate_backward<kAct>(norm.z(deviation, k), static_cast<A>(pixels.dy.at[i]), slope));
  }
}

// s0 += dz,   s1 += dz (x - mean).
template <Activation kAct, class T, int kWidth, class A, int kLanes>
__device__ __forceinline__ void add_pixels(Sums<A, 2> (&sums)[kLanes], const Pixels<T, kWidth>& pixels,
                                           const Normalization<A, kLanes>& norm, A slope) {
  for_each_dz<kAct>(pixels, norm, slope, [&](int, int k, A deviation, A dz) {
    sums[k].at[0] += dz;
    sums[k].at[1] += dz * deviation;
  });
}

// dx = scale dz + of_x (x - mean) + of_1.
template <Activation kAct, class T, int kWidth, class A, int kLanes>
__device__ __forceinline__ Vector<T, kWidth> dx_of(const Pixels<T, kWidth>& pixels,
                                                   const Normalization<A, kLanes>& norm,
                                                   const BackwardTerms<A> (&terms)[kLanes], A slope) {
  Vector<T, kWidth> dxs;
  for_each_dz<kAct>(pixels, norm, slope, [&](int i, int k, A deviation, A dz) {
    dxs.at[i] = static_cast<T>(norm.scale[k] * dz + terms[k].of_x * deviation + terms[k].of_1);
  });
  return dxs;
}

// dbias = s0,   dgain = rstd s1, at one place of the tables.
template <class A>
__device__ __forceinline__ void write_gradients(const Backward& args, int64_t plane, A rstd, const Sums<A, 2>& sum) {
  static_cast<A*>(args.dbias)[plane] = sum.at[0];
  static_cast<A*>(args.dgain)[plane] = rstd * sum.at[1];
}

// gain s0 and gain s1.
template <class A>
__device__ __forceinline__ Sums<A, 2> times_gain(const Backward& args, int64_t plane, const Sums<A, 2>& sum) {
  const A gain = static_cast<const A*>(args.gain)[plane];
  return {gain * sum.at[0], gain * sum.at[1]};
}

// From the sums of those over a channel's samples.
template <class A>
__device__ __forceinline__ BackwardTerms<A> terms_of(const Problem& p, A rstd, const Sums<A, 2>& sum) {
  const A share = p.batch_statistics ? 1 / static_cast<A>(p.n * p.l) : A(0);
  return backward_terms(rstd, share * sum.at[0], share * sum.at[1]);
}

}  // namespace gankernels::conditional_batch_norm::cuda

// What the passes of every order share. Included by spectral_norm*.cpp, which are built once per instruction set.
#pragma once

#include "spectral_norm.h"
#include "stream.h"

namespace gankernels::spectral_norm::cpu::GK_ISA {

using namespace gankernels::cpu::GK_ISA;

// ---- The passes of the derivatives, as spectral_norm.h describes them ----

template <class T, class Out>
Products backward_sums(const void* dy, const void* w, int64_t begin, int64_t end);
template <class T, class Out>
void backward(const Matrix& m, const Terms<double>& terms, const void* dy, const void* along, const void* across,
              void* dw, int64_t begin, int64_t end);
template <class T, class Out>
Products backward_backward_sums(const Matrix& m, const void* a, const void* dy, const void* w, const void* along,
                                const void* across, int64_t begin, int64_t end);
template <class T, class Out>
void backward_backward(const Matrix& m, const Terms<double>& terms, const void* a, const void* dy, const void* w,
                       const void* along, const void* across, void* ddy, void* dw, int64_t begin, int64_t end);

// GK_FOR_EACH_PAIR(GK_X): GK_X(T, Out) for every weight's and output's element type; the first four in the order of
// DType.
#define GK_FOR_EACH_PAIR(GK_X) \
  GK_X(float, float)           \
  GK_X(double, double) GK_X(BFloat16, BFloat16) GK_X(Float16, Float16) GK_X(float, BFloat16) GK_X(float, Float16)

template <class A, class V>
GK_INLINE A sum_of_lanes(const V& v) {
  A parts[kLanes<A>];
  std::memcpy(parts, &v, sizeof v);
  for (int64_t half = kLanes<A> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

GK_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// ---- Runs where inner is more ----

// Calls body<V>(c, j) for every V of a run, where j is c's place in a period of `inner` vectors: neighbouring columns
// belong to different elements of `across`, and after a period the same ones meet the same lanes again.
template <class A, class Body>
GK_INLINE void in_periods(int64_t columns, int64_t inner, Body&& body) {
  const int64_t period = inner * kLanes<A>;
  for (int64_t begin = 0; begin < columns; begin += period) {
    const int64_t length = least(period, columns - begin), vectors = length / kLanes<A> * kLanes<A>;
    for (int64_t j = 0; j < vectors; j += kLanes<A>) body.template operator()<Vector<A>>(begin + j, j);
    for (int64_t j = vectors; j < length; ++j) {
      stay_scalar();
      body.template operator()<A>(begin + j, j);
    }
  }
}

// One period.
template <class A>
class Period {
 public:
  explicit Period(int64_t inner) : inner_(inner), data_(static_cast<A*>(std::malloc(inner * kLanes<A> * sizeof(A)))) {}
  ~Period() { std::free(data_); }
  Period(const Period&) = delete;
  Period& operator=(const Period&) = delete;

  A* data() { return data_; }
  void repeat(const A* values) {
    for (int64_t lane = 0; lane < kLanes<A>; ++lane) std::memcpy(data_ + lane * inner_, values, inner_ * sizeof(A));
  }
  void clear() { std::memset(data_, 0, inner_ * kLanes<A> * sizeof(A)); }
  void fold(A* values) const {
    for (int64_t b = 0; b < inner_; ++b) {
      A sum = 0;
      for (int64_t lane = 0; lane < kLanes<A>; ++lane) sum += data_[lane * inner_ + b];
      values[b] = sum;
    }
  }

 private:
  int64_t inner_;
  A* data_;
};

}  // namespace gankernels::spectral_norm::cpu::GK_ISA

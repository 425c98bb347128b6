// Order 0, and the table of all passes. Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the
// width of a register.
#include "spectral_norm_passes.h"

namespace gankernels::spectral_norm::cpu::GK_ISA {
namespace {

// Runs that go through a pass side by side, for fewer loads of what they share, if they stay in a core's second-level
// cache together.
constexpr int kRuns = 4;
constexpr int64_t kRunsBytes = 256 << 10;

// ---- Runs where inner is 1 ----

template <int kCount, class T, class A>
GK_INLINE void dot(const T* w, int64_t columns, const A* along, A* across) {
  using V = Vector<A>;
  constexpr int kChains = 8 / kCount;  // so that no addition waits for the one before
  V sums[kCount][kChains] = {};
  int64_t j = 0;
  for (; j + kChains * kLanes<A> <= columns; j += kChains * kLanes<A>) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t at = j + chain * kLanes<A>;
      const V x = load<V>(along + at);
      for (int r = 0; r < kCount; ++r) sums[r][chain] += load<V>(w + r * columns + at) * x;
    }
  }
  for (; j + kLanes<A> <= columns; j += kLanes<A>) {
    const V x = load<V>(along + j);
    for (int r = 0; r < kCount; ++r) sums[r][0] += load<V>(w + r * columns + j) * x;
  }
  A rest[kCount] = {};
  for (; j < columns; ++j) {
    stay_scalar();
    for (int r = 0; r < kCount; ++r) rest[r] += load<A>(w + r * columns + j) * along[j];
  }
  for (int r = 0; r < kCount; ++r) {
    V sum = sums[r][0];
    for (int chain = 1; chain < kChains; ++chain) sum += sums[r][chain];
    across[r] = sum_of_lanes<A>(sum) + rest[r];
  }
}

template <int kCount, class T, class A>
GK_INLINE void add_scaled(const T* w, int64_t columns, const A* across, A* sums) {
  const auto at = [&]<class V>(int64_t j) GK_LAMBDA_INLINE {
    V sum = load<V>(w + j) * splat<V>(across[0]);
    for (int r = 1; r < kCount; ++r) sum += load<V>(w + r * columns + j) * splat<V>(across[r]);
    add(sums + j, sum);
  };
  const int64_t vectors = columns / kLanes<A> * kLanes<A>;
  for (int64_t j = 0; j < vectors; j += kLanes<A>) at.template operator()<Vector<A>>(j);
  for (int64_t j = vectors; j < columns; ++j) {
    stay_scalar();
    at.template operator()<A>(j);
  }
}

// ---- The power iteration ----

template <bool kAcross, bool kAlong, class T, class A>
GK_INLINE void power(const Matrix& m, const T* w, const A* along, A* across, A* sums, int64_t begin, int64_t end) {
  if (kAlong) std::memset(sums, 0, m.columns * sizeof(A));
  if (m.inner == 1) {
    int64_t r = begin;
    if (kRuns * m.columns * int64_t(sizeof(T)) <= kRunsBytes) {
      for (; r + kRuns <= end; r += kRuns) {
        if (kAcross) dot<kRuns>(w + r * m.columns, m.columns, along, across + r);
        if (kAlong) add_scaled<kRuns>(w + r * m.columns, m.columns, across + r, sums);
      }
    }
    for (; r < end; ++r) {
      if (kAcross) dot<1>(w + r * m.columns, m.columns, along, across + r);
      if (kAlong) add_scaled<1>(w + r * m.columns, m.columns, across + r, sums);
    }
    return;
  }
  Period<A> period(m.inner);
  A* const at = period.data();
  for (int64_t r = begin; r < end; ++r) {
    const T* run = w + r * m.columns;
    A* values = across + r * m.inner;
    if (kAcross) {
      period.clear();
      in_periods<A>(m.columns, m.inner, [&]<class V>(int64_t c, int64_t j) GK_LAMBDA_INLINE {
        add(at + j, load<V>(run + c) * load<V>(along + c));
      });
      period.fold(values);
    }
    if (kAlong) {
      period.repeat(values);
      in_periods<A>(m.columns, m.inner, [&]<class V>(int64_t c, int64_t j) GK_LAMBDA_INLINE {
        add(sums + c, load<V>(run + c) * load<V>(at + j));
      });
    }
  }
}

template <class T>
void iterate(const Matrix& m, const void* w, const void* along, void* across, void* sums, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  power<true, true>(m, static_cast<const T*>(w), static_cast<const A*>(along), static_cast<A*>(across),
                    static_cast<A*>(sums), begin, end);
}

template <class T>
void sum_across(const Matrix& m, const void* w, const void* along, void* across, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  power<true, false>(m, static_cast<const T*>(w), static_cast<const A*>(along), static_cast<A*>(across),
                     static_cast<A*>(nullptr), begin, end);
}

template <class T>
void sum_along(const Matrix& m, const void* w, const void* across, void* sums, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  power<false, true>(m, static_cast<const T*>(w), static_cast<const A*>(nullptr),
                     static_cast<A*>(const_cast<void*>(across)), static_cast<A*>(sums), begin, end);
}

template <class T, class Out>
void scale(const void* w_, double sigma, bool large, void* y_, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const T* w = static_cast<const T*>(w_);
  Out* y = static_cast<Out*>(y_);
  const A divisor = A(sigma);
  int64_t i = begin;
  const auto one_by_one = [&](int64_t last) GK_LAMBDA_INLINE {
    for (; i < last; ++i) {
      stay_scalar();
      store(y + i, load<A>(w + i) / divisor);
    }
  };
  if (large) {
    while (i < end && !streamable(y + i, 0)) one_by_one(i + 1);
    for (; i + kLanes<A> <= end; i += kLanes<A>) stream(y + i, load<Vector<A>>(w + i) / splat<Vector<A>>(divisor));
    end_of_stream();
  }
  for (; i + kLanes<A> <= end; i += kLanes<A>) store(y + i, load<Vector<A>>(w + i) / splat<Vector<A>>(divisor));
  one_by_one(end);
}

template <class T, class Out>
constexpr Passes kPasses = {iterate<T>,
                            sum_across<T>,
                            sum_along<T>,
                            scale<T, Out>,
                            backward_sums<T, Out>,
                            backward<T, Out>,
                            backward_backward_sums<T, Out>,
                            backward_backward<T, Out>};

}  // namespace

#define GK_ENTRY(T, Out) kPasses<T, Out>,
extern const Table table = {GK_FOR_EACH_PAIR(GK_ENTRY)};

}  // namespace gankernels::spectral_norm::cpu::GK_ISA

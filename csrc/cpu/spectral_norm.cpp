// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "spectral_norm.h"

#include "stream.h"

namespace gankernels::spectral_norm::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

template <class T>
using AccumulatorT = typename AccumulatorOf<T>::type;

// Runs that go through a pass side by side, for fewer loads of what they share, if they stay in a core's second-level
// cache together.
constexpr int kRuns = 4;
constexpr int64_t kRunsBytes = 256 << 10;

// Numbers whose products are added in the accumulation type; the sums of such blocks are added as doubles.
constexpr int64_t kBlock = 4096;

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

// ---- Derivatives ----

template <class T, class Out>
Products backward_sums(const void* dy_, const void* w_, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  using V = Vector<A>;
  constexpr int kChains = 4;
  const T* w = static_cast<const T*>(w_);
  const Out* dy = static_cast<const Out*>(dy_);
  double total = 0;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = least(first + kBlock, end);
    V sums[kChains] = {};
    int64_t i = first;
    for (; i + kChains * kLanes<A> <= last; i += kChains * kLanes<A>)
      for (int chain = 0; chain < kChains; ++chain)
        sums[chain] += load<V>(dy + i + chain * kLanes<A>) * load<V>(w + i + chain * kLanes<A>);
    for (; i < last; ++i) {
      stay_scalar();
      total += load<A>(dy + i) * load<A>(w + i);
    }
    total += sum_of_lanes<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return {0, 0, total};
}

// Calls body<V>(number, u v^T) for every V of the runs, and after(), if not null, behind every run.
template <class A, class Body, class After>
GK_INLINE void with_rank_one(const Matrix& m, const void* along_, const void* across_, int64_t begin, int64_t end,
                             Body&& body, After&& after) {
  const A *along = static_cast<const A*>(along_), *across = static_cast<const A*>(across_);
  if (m.inner == 1) {
    const int64_t vectors = m.columns / kLanes<A> * kLanes<A>;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = r * m.columns;
      for (int64_t c = 0; c < vectors; c += kLanes<A>)
        body.template operator()<Vector<A>>(first + c, load<Vector<A>>(along + c) * splat<Vector<A>>(across[r]));
      for (int64_t c = vectors; c < m.columns; ++c) {
        stay_scalar();
        body.template operator()<A>(first + c, along[c] * across[r]);
      }
      after();
    }
    return;
  }
  Period<A> period(m.inner);
  const A* at = period.data();
  for (int64_t r = begin; r < end; ++r) {
    period.repeat(across + r * m.inner);
    in_periods<A>(m.columns, m.inner, [&]<class V>(int64_t c, int64_t j) GK_LAMBDA_INLINE {
      body.template operator()<V>(r * m.columns + c, load<V>(along + c) * load<V>(at + j));
    });
    after();
  }
}

template <class T, class Out>
void backward(const Matrix& m, const Terms<double>& terms, const void* dy_, const void* along, const void* across,
              void* dw_, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Out* dy = static_cast<const Out*>(dy_);
  T* dw = static_cast<T*>(dw_);
  const A sigma = A(terms.sigma), of_uv = A(terms.of_uv);
  const auto value = [&]<class V>(int64_t i, V uv)
                         GK_LAMBDA_INLINE { return (load<V>(dy + i) - splat<V>(of_uv) * uv) / splat<V>(sigma); };
  if (is_large(m) && streamable(dw, m.columns)) {
    with_rank_one<A>(
        m, along, across, begin, end, [&]<class V>(int64_t i, V uv) GK_LAMBDA_INLINE { stream(dw + i, value(i, uv)); },
        []() GK_LAMBDA_INLINE {});
    end_of_stream();
  } else {
    with_rank_one<A>(
        m, along, across, begin, end, [&]<class V>(int64_t i, V uv) GK_LAMBDA_INLINE { store(dw + i, value(i, uv)); },
        []() GK_LAMBDA_INLINE {});
  }
}

template <class T, class Out>
Products backward_backward_sums(const Matrix& m, const void* a_, const void* dy_, const void* w_, const void* along,
                                const void* across, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const T *a = static_cast<const T*>(a_), *w = static_cast<const T*>(w_);
  const Out* dy = static_cast<const Out*>(dy_);
  // In lanes, and the odd ends of runs.
  Vector<A> vectors[3] = {};
  A numbers[3] = {};
  Products total;
  with_rank_one<A>(
      m, along, across, begin, end,
      [&]<class V>(int64_t i, V uv) GK_LAMBDA_INLINE {
        const V av = load<V>(a + i), dyv = load<V>(dy + i), wv = load<V>(w + i);
        if constexpr (std::is_same_v<V, A>) {
          numbers[0] += av * dyv, numbers[1] += av * uv, numbers[2] += dyv * wv;
        } else {
          vectors[0] += av * dyv, vectors[1] += av * uv, vectors[2] += dyv * wv;
        }
      },
      [&]() GK_LAMBDA_INLINE {
        total.a_dy += sum_of_lanes<A>(vectors[0]) + numbers[0];
        total.a_uv += sum_of_lanes<A>(vectors[1]) + numbers[1];
        total.dy_w += sum_of_lanes<A>(vectors[2]) + numbers[2];
        for (auto& sum : vectors) sum = Vector<A>{};
        for (A& sum : numbers) sum = 0;
      });
  return total;
}

template <class T, class Out>
void backward_backward(const Matrix& m, const Terms<double>& terms, const void* a_, const void* dy_, const void* w_,
                       const void* along, const void* across, void* ddy_, void* dw_, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const T *a = static_cast<const T*>(a_), *w = static_cast<const T*>(w_);
  const Out* dy = static_cast<const Out*>(dy_);
  Out* ddy = static_cast<Out*>(ddy_);
  T* dw = static_cast<T*>(dw_);
  const A sigma = A(terms.sigma), of_uv = A(terms.of_uv), of_w = A(terms.of_w), of_dy = A(terms.of_dy);
  with_rank_one<A>(
      m, along, across, begin, end,
      [&]<class V>(int64_t i, V uv) GK_LAMBDA_INLINE {
        const V wv = load<V>(w + i), dyv = load<V>(dy + i);
        store(ddy + i, (load<V>(a + i) - splat<V>(of_w) * wv) / splat<V>(sigma));
        store(dw + i, (splat<V>(of_uv) * uv - splat<V>(of_dy) * dyv) / splat<V>(sigma));
      },
      []() GK_LAMBDA_INLINE {});
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

// The first four in the order of DType.
extern const Table table = {kPasses<float, float>,     kPasses<double, double>,  kPasses<BFloat16, BFloat16>,
                            kPasses<Float16, Float16>, kPasses<float, BFloat16>, kPasses<float, Float16>};

}  // namespace gankernels::spectral_norm::cpu::GK_ISA

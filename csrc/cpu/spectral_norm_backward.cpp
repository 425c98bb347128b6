// Orders 1 and 2.
#include "spectral_norm_passes.h"

namespace gankernels::spectral_norm::cpu::GK_ISA {
namespace {

// Numbers whose products are added in the accumulation type; the sums of such blocks are added as doubles.
constexpr int64_t kBlock = 4096;

// Calls body<V>(number, u v^T) for every V of the runs, and after() behind every run.
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

}  // namespace

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

#define GK_INSTANTIATE(T, Out)                                                                                        \
  template Products backward_sums<T, Out>(const void*, const void*, int64_t, int64_t);                                \
  template void backward<T, Out>(const Matrix&, const Terms<double>&, const void*, const void*, const void*, void*,   \
                                 int64_t, int64_t);                                                                   \
  template Products backward_backward_sums<T, Out>(const Matrix&, const void*, const void*, const void*, const void*, \
                                                   const void*, int64_t, int64_t);                                    \
  template void backward_backward<T, Out>(const Matrix&, const Terms<double>&, const void*, const void*, const void*, \
                                          const void*, const void*, void*, void*, int64_t, int64_t);
GK_FOR_EACH_PAIR(GK_INSTANTIATE)

}  // namespace gankernels::spectral_norm::cpu::GK_ISA

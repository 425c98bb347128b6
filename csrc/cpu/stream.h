// Stores that bypass the caches: a line that is written whole need not be read first, which saves a third of the
// traffic of a pass that reads one tensor and writes another. For results larger than the cache alone.
#pragma once

#include "vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gankernels::cpu::GK_ISA {

// Bytes of a register of A stored as T.
template <class T>
inline constexpr int64_t kStoreBytes = kLanes<AccumulatorT<T>> * sizeof(T);

#if defined(__SSE2__)
template <class T>
inline constexpr bool kCanStream = kStoreBytes<T> >= 16;
#else
template <class T>
inline constexpr bool kCanStream = false;
#endif

// Whether runs of `columns` numbers that begin at p can be written by `stream`.
template <class T>
GK_INLINE bool streamable(const T* p, int64_t columns) {
  return kCanStream<T> && reinterpret_cast<uintptr_t>(p) % kStoreBytes<T> == 0 &&
         columns * int64_t(sizeof(T)) % kStoreBytes<T> == 0;
}

// p is aligned to kStoreBytes.
template <class V, class T>
GK_INLINE void stream(T* p, V v) {
#if defined(__SSE2__)
  if constexpr (sizeof(V) == GK_VECTOR_BYTES && kCanStream<T>) {
    constexpr int64_t kBytes = kStoreBytes<T>;
    T values[kBytes / sizeof(T)];
    store(values, v);
    // In the widest pieces that the instruction set has.
#if defined(__AVX512F__)
    if constexpr (kBytes == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_loadu_si512(values));
      return;
    }
#endif
#if defined(__AVX2__)
    if constexpr (kBytes >= 32) {
      for (int64_t i = 0; i < kBytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(reinterpret_cast<char*>(p) + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(reinterpret_cast<char*>(values) + i)));
      return;
    }
#endif
    for (int64_t i = 0; i < kBytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(reinterpret_cast<char*>(p) + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(reinterpret_cast<char*>(values) + i)));
    return;
  }
#endif
  store(p, v);
}

// The same for `stream_step`.
template <class T>
GK_INLINE bool streamable_steps(const T* p, int64_t columns) {
  constexpr int64_t kBytes = kRegisters<T> * kStoreBytes<T>;
  return kCanStream<T> && reinterpret_cast<uintptr_t>(p) % kBytes == 0 && columns * int64_t(sizeof(T)) % kBytes == 0;
}

// A step's registers, at a place that is aligned to a step.
template <class V, class T>
GK_INLINE void stream_step(T* p, const V (&v)[kRegisters<T>]) {
  if constexpr (kRegisters<T> == 2) {
    // As 32-bit numbers: the same bytes in the same order.
    stream(reinterpret_cast<float*>(p), bit_cast<V>(pack(v)));
  } else {
    stream(p, v[0]);
  }
}

// Streamed stores are seen by other threads after this.
GK_INLINE void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace gankernels::cpu::GK_ISA

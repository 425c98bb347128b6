// Vectors of the accumulation type, loaded from and stored to any element type. Built once per instruction set:
// GK_ISA names the namespace, GK_VECTOR_BYTES the width. The compiler's vector extension does the arithmetic, so one
// source serves every set; only the half-precision conversions are spelled out.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../common.h"

#define GK_INLINE inline __attribute__((always_inline))
#define GK_LAMBDA_INLINE __attribute__((always_inline))
// What runs once for thousands of numbers, and does not depend on what is done with them: one copy serves every pass.
#define GK_ONCE_PER_TILE __attribute__((noinline))

namespace gankernels::cpu::GK_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using AccumulatorT = typename AccumulatorOf<T>::type;

// As many accumulators as one register holds.
template <class A>
inline constexpr int64_t kLanes = GK_VECTOR_BYTES / sizeof(A);

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(GK_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(GK_VECTOR_BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::type;

typedef uint32_t Bits __attribute__((vector_size(GK_VECTOR_BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(GK_VECTOR_BYTES / 2)));

// In the body of a loop over less than a register of numbers: the compiler, which does not know that, would write
// vectors for it too, and they took a third of its time and half of the code.
GK_INLINE void stay_scalar() {
  asm volatile("");
}

template <class To, class From>
GK_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- bf16: the upper half of a float, rounded to nearest even ----

// Rounded into the upper half of its bits; the lower half is anything.
template <class U, class V>
GK_INLINE U round_to_upper_half(V v) {
  const U bits = bit_cast<U>(v), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v == v ? rounded : U{} + 0x7fc00000u;
}

GK_INLINE float to_float(BFloat16 value) {
  return bit_cast<float>(uint32_t(value.bits) << 16);
}
GK_INLINE BFloat16 to_bfloat16(float value) {
  return {uint16_t(round_to_upper_half<uint32_t>(value) >> 16)};
}

// ---- fp16 ----

#if defined(__F16C__)
GK_INLINE float to_float(Float16 value) {
  return _cvtsh_ss(value.bits);
}
GK_INLINE Float16 to_float16(float value) {
  return {uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
}
#else
GK_INLINE float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  // Exponents are re-biased by a multiplication, which also normalises subnormals; infinity and NaN keep their bits.
  const float magnitude = rest >= 0x7c00 ? bit_cast<float>(0x7f800000u | (rest << 13))
                                         : bit_cast<float>(rest << 13) * bit_cast<float>(0x77800000u /* 2^112 */);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}
GK_INLINE Float16 to_float16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000u) return {uint16_t(sign | 0x7e00)};
  if (rest >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and more round to infinity
  if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return {uint16_t(sign | (bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1)) >> 13))};
}
#endif

// A register of 16-bit numbers from memory as 32-bit ones, and back. One and two instructions, where the compiler's own
// conversion takes five of each.
GK_INLINE Bits widen(const void* p) {
#if defined(__AVX512F__) && GK_VECTOR_BYTES == 64
  return Bits(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
#elif defined(__AVX2__) && GK_VECTOR_BYTES == 32
  return Bits(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  HalfBits bits;
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, Bits);
#endif
}

GK_INLINE void narrow(void* p, Bits wide) {
#if defined(__AVX512F__) && GK_VECTOR_BYTES == 64
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(__m512i(wide)));
#elif defined(__AVX2__) && GK_VECTOR_BYTES == 32
  const __m256i v = __m256i(wide);
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#else
  const HalfBits bits = __builtin_convertvector(wide, HalfBits);
  std::memcpy(p, &bits, sizeof bits);
#endif
}

// ---- load and store: V is a number, or a vector, of the accumulation type ----

template <class V, class T>
GK_INLINE V load(const T* p) {
  V v;
  if constexpr (sizeof(T) == 2) {
    if constexpr (sizeof(V) == sizeof(float)) {
      v = to_float(*p);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      v = V(widen(p) << 16);
    } else {
#if defined(__AVX512F__) && GK_VECTOR_BYTES == 64
      v = V(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && GK_VECTOR_BYTES == 32
      v = V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
      for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
#endif
    }
  } else {
    std::memcpy(&v, p, sizeof v);
  }
  return v;
}

template <class V, class T>
GK_INLINE void store(T* p, V v) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (sizeof(V) == sizeof(float)) {
      if constexpr (std::is_same_v<T, BFloat16>) {
        *p = to_bfloat16(v);
      } else {
        *p = to_float16(v);
      }
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      narrow(p, round_to_upper_half<Bits>(v) >> 16);
    } else {
#if defined(__AVX512F__) && GK_VECTOR_BYTES == 64
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && GK_VECTOR_BYTES == 32
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
#else
      for (int64_t i = 0; i < kLanes<float>; ++i) p[i] = to_float16(v[i]);
#endif
    }
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

// ---- Steps: as many registers as one pass over T takes at a time ----

// Two of bf16, split into the numbers at even and at odd places: a shift and a mask, where neighbours would take two
// conversions, and on the way back one blend in place of two packings and half the stores.
template <class T>
inline constexpr int kRegisters = std::is_same_v<T, BFloat16> ? 2 : 1;

template <class V, class T>
GK_INLINE void load_step(const T* p, V (&v)[kRegisters<T>]) {
  if constexpr (kRegisters<T> == 2) {
    Bits bits;
    std::memcpy(&bits, p, sizeof bits);
    v[0] = V(bits << 16);
    v[1] = V(bits & 0xffff0000u);
  } else {
    v[0] = load<V>(p);
  }
}

typedef uint16_t Halves __attribute__((vector_size(GK_VECTOR_BYTES)));

// Every second 16 bits from the one, the others from the other.
GK_INLINE Halves blend(Bits even, Bits odd) {
#if defined(__AVX512BW__) && GK_VECTOR_BYTES == 64
  return Halves(_mm512_mask_blend_epi16(0xaaaaaaaau, __m512i(even), __m512i(odd)));
#elif defined(__AVX2__) && GK_VECTOR_BYTES == 32
  return Halves(_mm256_blend_epi16(__m256i(even), __m256i(odd), 0xaa));
#else
  return Halves((even & 0xffffu) | (odd & 0xffff0000u));
#endif
}

// The two registers of a bf16 step as they lie in memory. Upper halves are rounded to nearest even for both at a time,
// by what the lower halves say: up where they are more than half of a last place, or half and the upper one is odd. A
// NaN must not have 16 ones at its end, which would carry into its sign: see plain().
template <class V>
GK_INLINE Bits pack(const V (&v)[2]) {
  const Bits even = bit_cast<Bits>(v[0]), odd = bit_cast<Bits>(v[1]);
  const Halves upper = blend(even >> 16, odd), lower = blend(even, odd << 16), is_even = ~upper & 1;
#if defined(__AVX512BW__) && GK_VECTOR_BYTES == 64
  const Halves over = Halves(_mm512_subs_epu16(__m512i(lower), __m512i(is_even)));
#elif defined(__AVX2__) && GK_VECTOR_BYTES == 32
  const Halves over = Halves(_mm256_subs_epu16(__m256i(lower), __m256i(is_even)));
#else
  const Halves over = lower - (lower > 0 ? is_even : Halves{});
#endif
  return Bits(upper + (over >> 15));
}

// The number itself; the standard NaN for a NaN. For fp32 operands of what is rounded to bf16: NaN that comes from bf16
// or from arithmetic has zeros at its end.
template <class A>
GK_INLINE A plain(A a) {
  return a == a ? a : std::numeric_limits<A>::quiet_NaN();
}

template <class V, class T>
GK_INLINE void store_step(T* p, const V (&v)[kRegisters<T>]) {
  if constexpr (kRegisters<T> == 2) {
    const Bits bits = pack(v);
    std::memcpy(p, &bits, sizeof bits);
  } else {
    store(p, v[0]);
  }
}

template <class V, class A>
GK_INLINE void add(A* p, V v) {
  store(p, load<V>(p) + v);
}

// A number in every lane.
template <class V, class A>
GK_INLINE V splat(A a) {
  return V{} + a;
}

}  // namespace gankernels::cpu::GK_ISA

// The functions that smooth activations are made of, on the vectors of vec.h. In fp32 each is a polynomial (least
// maximum, fitted in 40 digits) after a reduction of its range, and errs by about a unit in the last place, which is
// what the C library's do. In fp64 they are the C library's.
#pragma once

#include "../activation.h"
#include "vec.h"

namespace gankernels::cpu::GK_ISA {

// Numbers and vectors of them go the same way, so that an odd end gets what a vector would have got.
template <class V>
inline constexpr bool kIsFloat = std::is_same_v<V, float> || std::is_same_v<V, Vector<float>>;

template <class V>
using BitsOf = std::conditional_t<std::is_same_v<V, float>, uint32_t, Bits>;

// a * b + c, rounded once where one instruction does it.
template <class V>
GK_INLINE V multiply_add(V a, V b, V c) {
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, c);
#if defined(__AVX512F__) && GK_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<V, Vector<float>>) return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif GK_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<V, Vector<float>>) return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#endif
#endif
  return a * b + c;
}

// c0 + c1 x + c2 x^2 + ...
template <class V, class... Rest>
GK_INLINE V polynomial(V x, float c0, Rest... rest) {
  if constexpr (sizeof...(rest) == 0)
    return V{} + c0;
  else
    return multiply_add(polynomial(x, rest...), x, V{} + c0);
}

template <class V>
GK_INLINE V magnitude(V x) {
  return bit_cast<V>(bit_cast<BitsOf<V>>(x) & 0x7fffffffu);
}
template <class V>
GK_INLINE V with_sign_of(V size, V x) {
  return bit_cast<V>(bit_cast<BitsOf<V>>(size) | (bit_cast<BitsOf<V>>(x) & 0x80000000u));
}

// exp(x) = scale (1 + p) for x <= 0 or NaN, with scale a power of two and |p| <= 0.42. Below the exponent of the
// smallest normal number, scale is that.
template <class V>
struct Exponential {
  V scale, p;

  GK_INLINE explicit Exponential(V x) {
    using B = BitsOf<V>;
    constexpr float kLowest = -87.33654f;  // log(2^-126)
    const V bounded = x < V{} + kLowest ? V{} + kLowest : x;
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const V shifter = V{} + 0x1.8p23f, shifted = multiply_add(bounded, V{} + 1.44269504f, shifter),
            n = shifted - shifter;
    scale = bit_cast<V>((bit_cast<B>(shifted) + (127u - 0x4b400000u)) << 23);
    // r = x - n log 2, which is subtracted in two parts, the first exact.
    const V r = multiply_add(n, V{} + 2.12194440e-4f, multiply_add(n, V{} - 0.693359375f, bounded));
    const V q = polynomial(r, 0.500000006571f, 0.166665380138f, 0.0416662665743f, 0.00836724692394f, 0.00139475954758f);
    p = multiply_add(r * r, q, r);
  }

  GK_INLINE V value() const { return multiply_add(scale, p, scale); }
};

// exp(x) for x <= 0; 0 below the smallest normal number.
template <class V>
GK_INLINE V exp_of_negative(V x) {
  const V value = Exponential<V>(x).value();
  return x < V{} - 87.33654f ? V{} : value;
}

struct Math {
  template <class V>
  static GK_INLINE V sigmoid(V z) {
    if constexpr (kIsFloat<V>) {
      const V one = V{} + 1.0f, e = exp_of_negative(-magnitude(z));
      return (z < V{} ? e : one) / (one + e);
    } else {
      return each(z, [](double lane) GK_LAMBDA_INLINE { return StandardMath::sigmoid(lane); });
    }
  }

  // With e = exp(-2 |z|): (1 - e) / (1 + e), in terms of expm1, exact to its own last digits where z is small; and
  // 1 - 2 e / (1 + e), whose rounding errors are those of a small number, where it is large.
  template <class V>
  static GK_INLINE V tanh(V z) {
    if constexpr (kIsFloat<V>) {
      const V one = V{} + 1.0f, large = V{} + 0.25f;
      const Exponential<V> of(magnitude(z) * -2.0f);
      const V e = of.value(), less_one = multiply_add(of.scale, of.p, of.scale - one);
      const V part = (e < large ? e + e : magnitude(less_one)) / (e < large ? one + e : V{} + 2.0f + less_one);
      return with_sign_of(e < large ? one - part : part, z);
    } else {
      return each(z, [](double lane) GK_LAMBDA_INLINE { return StandardMath::tanh(lane); });
    }
  }

  // max(z, 0) + log1p(e) with e = exp(-|z|), and log1p(e) = 2 atanh(s) = 2 s + s^3 (2/3 + ...) with s = e / (2 + e).
  template <class V>
  static GK_INLINE V softplus(V z) {
    if constexpr (kIsFloat<V>) {
      const V e = exp_of_negative(-magnitude(z)), s = e / (e + 2.0f), w = s * s;
      const V rest = polynomial(w, 0.66666675622f, 0.399988777391f, 0.286168848942f, 0.214276568877f, 0.243009380389f);
      return multiply_add(s * w, rest, s + s) + (z > V{} ? z : V{});
    } else {
      return each(z, [](double lane) GK_LAMBDA_INLINE { return StandardMath::softplus(lane); });
    }
  }

  template <class V>
  static GK_INLINE V normal_pdf(V z) {
    if constexpr (kIsFloat<V>) {
      return exp_of_negative(z * z * -0.5f) * 0.398942280f;
    } else {
      return each(z, [](double lane) GK_LAMBDA_INLINE { return StandardMath::normal_pdf(lane); });
    }
  }

  // The tail beyond |z| is pdf(z) times Mills's ratio, a polynomial in t = 1 / (1 + |z| / 4).
  template <class V>
  static GK_INLINE V normal_cdf(V z) {
    if constexpr (kIsFloat<V>) {
      const V one = V{} + 1.0f, t = one / multiply_add(magnitude(z), V{} + 0.25f, one);
      const V mills =
          t * polynomial(t, 0.249999882154f, 0.250007844225f, 0.234184929188f, 0.205397126105f, 0.143876599345f,
                         0.170546398936f, -0.0975998582237f, 0.257478603484f, -0.212328350695f, 0.0517509859091f);
      const V tail = normal_pdf(z) * mills;
      return z < V{} ? tail : one - tail;
    } else {
      return each(z, [](double lane) GK_LAMBDA_INLINE { return StandardMath::normal_cdf(lane); });
    }
  }

 private:
  template <class V, class Function>
  static GK_INLINE V each(V z, Function&& function) {
    if constexpr (std::is_same_v<V, double>) {
      return function(z);
    } else {
      for (int64_t i = 0; i < kLanes<double>; ++i) z[i] = function(z[i]);
      return z;
    }
  }
};

}  // namespace gankernels::cpu::GK_ISA

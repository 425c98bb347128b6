// IEEE half: 5 bits of exponent, 10 of fraction, rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) {
      bits = 0x7fff;
    } else if (size >= 65520) {  // halfway past the largest
      bits = sign | 0x7c00;
    } else if (size < 0x1p-14f) {  // zero and subnormals: multiples of 2^-24; 1024 of them are the smallest normal
      bits = static_cast<uint16_t>(sign | std::lrint(size * 0x1p24f));
    } else {
      const int exponent = std::ilogb(size);  // a fraction that rounds up to 2048 carries into the exponent
      bits = static_cast<uint16_t>(sign | (((exponent + 14) << 10) + std::lrint(std::ldexp(size, 10 - exponent))));
    }
  }
  operator float() const {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 31)
      size = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    return bits & 0x8000 ? -size : size;
  }
};

inline float __half2float(__half value) {
  return value;
}
inline __half __float2half(float value) {
  return value;
}

// A test's only tools: CHECK, and a number that knows how far rounding may have moved it.
#pragma once

#include <cmath>
#include <cstdio>

inline int failures = 0;

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition) && ++failures <= 20) {                                \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
    }                                                                      \
  } while (false)

// Value of an expression, and the same expression over absolute values: times the unit roundoff, times the roundings on
// the way, it bounds what an evaluation in floating point is off by, in any order of its sums (Higham, "Accuracy and
// Stability of Numerical Algorithms", 2002, section 3.1).
// In long double, to be a reference for double too.
struct Bounded {
  long double value = 0, size = 0;

  Bounded() = default;
  Bounded(long double value) : value(value), size(std::fabs(value)) {}
  Bounded(long double value, long double size) : value(value), size(size) {}

  Bounded& operator+=(Bounded b) { return *this = {value + b.value, size + b.size}; }
};

inline Bounded operator+(Bounded a, Bounded b) {
  return a += b;
}
inline Bounded operator-(Bounded a) {
  return {-a.value, a.size};
}
inline Bounded operator-(Bounded a, Bounded b) {
  return a + -b;
}
inline Bounded operator*(Bounded a, Bounded b) {
  return {a.value * b.value, a.size * b.size};
}
inline Bounded operator/(Bounded a, long double b) {
  return {a.value / b, a.size / std::fabs(b)};
}

// d(a^-1/2) = -1/2 a^-3/2 da.
inline Bounded reciprocal_root(Bounded a) {
  const long double root = 1 / std::sqrt(a.value);
  return {root, root * (1 + a.size / a.value / 2)};
}

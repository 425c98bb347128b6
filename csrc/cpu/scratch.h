// Arithmetic of sizes, and a thread's own memory. Built once per instruction set, like vec.h.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "vec.h"

namespace gankernels::cpu::GK_ISA {

GK_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
GK_INLINE int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}
GK_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
// For any sign of a.
GK_INLINE int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b < 0);
}

// Memory that begins with a line of the cache.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(kLine, ceil_div(count * sizeof(T), kLine) * kLine))) {}
  ~Lines() { std::free(data_); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;
  T* get() { return data_; }

 private:
  static constexpr int64_t kLine = 64;
  T* data_;
};

}  // namespace gankernels::cpu::GK_ISA

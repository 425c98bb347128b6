// Element types, and several neighbouring elements moved by one instruction.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "../common.h"

namespace gankernels {

// Sums and statistics are kept in float, and in double for double.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kVectorBytes = 16;  // the widest access of one thread

template <class T>
constexpr int kVectorWidth = kVectorBytes / sizeof(T);

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T at[kWidth];
};

template <int kWidth, class T>
__device__ __forceinline__ Vector<T, kWidth> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(from);
}

// To global memory.
template <int kWidth, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, kWidth>& vector) {
#ifdef __CUDA_ARCH__
  // Spelt out: nvcc 13.0 splits some plain stores of elements of 2 bytes into stores of 4 bytes.
  if constexpr (sizeof(T) == 2 && sizeof(vector) == sizeof(uint4)) {
    uint4 words;
    std::memcpy(&words, &vector, sizeof words);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
                 "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
    return;
  }
#endif
  *reinterpret_cast<Vector<T, kWidth>*>(to) = vector;
}

// Whether arrays that begin here, cut into rows of `row` elements, can be walked in 16-byte vectors.
inline bool vectorisable(std::initializer_list<const void*> arrays, int64_t row, int width) {
  bool aligned = row % width == 0;
  for (const void* array : arrays) aligned = aligned && reinterpret_cast<uintptr_t>(array) % kVectorBytes == 0;
  return aligned;
}

}  // namespace gankernels

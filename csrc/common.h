// What every kernel shares: element types, layouts, activations. No torch headers.
#pragma once

#include <cstdint>

// Always inlined on the host too: a shared copy of such a function, compiled for one instruction set, could otherwise
// be linked into the code of another.
#ifdef __CUDACC__
#define GK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GK_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace gankernels {

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

// How the pixels of a picture lie in memory: [N, C, L] or [N, L, C], with L = H * W.
enum class Layout { kContiguous, kChannelsLast };

// What each computes stands in activation.h.
enum class Activation { kNone, kRelu, kLeakyRelu, kTanh, kSigmoid, kSilu, kSoftplus, kGelu };

}  // namespace gankernels

// Memory for outputs that are large: pictures, weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gankernels {

// On the CPU, torch returns memory of this size to the system and gets it again for the next output, one page fault for
// every 4 KiB: more time than a fused kernel takes for its arithmetic. Asking for huge pages makes that one fault for
// every 2 MiB. Where the system has no huge pages to give, nothing changes.
inline void use_huge_pages(at::Tensor& y) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = 2 << 20, kWorthwhile = 2 * kHugePage;
  if (y.is_cpu() && y.nbytes() >= kWorthwhile) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(y.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage,
                    last = (begin + y.nbytes()) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// at::empty_like, in huge pages.
inline at::Tensor empty_like_pixels(const at::Tensor& x, at::ScalarType dtype) {
  at::Tensor y = at::empty_like(x, x.options().dtype(dtype));
  use_huge_pages(y);
  return y;
}
inline at::Tensor empty_like_pixels(const at::Tensor& x) {
  return empty_like_pixels(x, x.scalar_type());
}

}  // namespace gankernels

// Arrays that make out-of-bounds accesses visible.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace cuda_shim {

// `size` elements, `misalignment` elements past a multiple of 16 bytes and at most 15 bytes before a page that traps.
// Filled, with all around them on their pages, with NaN.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size, size_t misalignment = 0) : size_(size), misalignment_(misalignment) {
    const size_t bytes = (size + misalignment) * sizeof(T), page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t padded = (bytes + 15) / 16 * 16;
    mapped_ = (padded + page - 1) / page * page + 2 * page;
    base_ =
        static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    std::memset(base_, kPoison, mapped_);
    end_ = base_ + mapped_ - page;
    mprotect(end_, page, PROT_NONE);
    mprotect(base_, page, PROT_NONE);
    begin_ = base_ + page;
    data_ = reinterpret_cast<T*>(end_ - padded) + misalignment;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

  // Whether nothing beside the elements was written.
  bool intact() const {
    const auto* first = reinterpret_cast<const unsigned char*>(data_);
    for (const unsigned char* p = begin_; p < first; ++p) {
      if (*p != kPoison) return false;
    }
    for (const unsigned char* p = first + size_ * sizeof(T); p < end_; ++p) {
      if (*p != kPoison) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kPoison = 0xff;

  size_t size_, misalignment_, mapped_;
  unsigned char *base_, *begin_, *end_;
  T* data_;
};

}  // namespace cuda_shim

// As much of cooperative groups as csrc/cuda uses: thread-block clusters.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  static void sync() {
    barrier_arrive();
    barrier_wait();
  }
  static void barrier_arrive() { cuda_shim::arrive_cluster(); }
  static void barrier_wait() { cuda_shim::wait_cluster(); }
  static unsigned block_rank() { return cuda_shim::cluster_rank(); }
  static unsigned num_blocks() { return cuda_shim::cluster_blocks(); }
  template <class T>
  static T* map_shared_rank(T* own, int rank) {
    return static_cast<T*>(cuda_shim::shared_of(own, static_cast<unsigned>(rank)));
  }
};

inline cluster_group this_cluster() {
  return {};
}

}  // namespace cooperative_groups

// The shim itself: it must catch what it is there to catch.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <limits>

#include "check.h"
#include "cuda_shim/guarded.h"

namespace {

using cuda_shim::Guarded;
using cuda_shim::Order;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, dim3 threads, Arguments... arguments) {
  const cudaLaunchConfig_t config = {blocks, threads, 64 * sizeof(float), nullptr, nullptr, 0};
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...) == cudaSuccess, "launch");
}

// Every thread reads what its neighbour has written before the barrier.
template <bool kBarrier>
__global__ void rotate_kernel(float* out) {
  GK_SHARED(float, shared, 64);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}

__global__ void dynamic_kernel(float* out) {
  GK_DYNAMIC_SHARED(float, shared);
  out[threadIdx.x] = shared[threadIdx.x];
  atomicAdd(out + 64, 1.f);
}

__global__ void shuffle_kernel(double* down, int* across, int* first) {
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  down[thread] = __shfl_down_sync(0xffffffffu, thread + 0.5, 3, 8);
  across[thread] = __shfl_xor_sync(0xffffffffu, thread, 16);
  first[thread] = __shfl_sync(0xffffffffu, thread, 0);
}

void check_barriers() {
  for (Order order : {Order::kForward, Order::kReversed}) {
    cuda_shim::order = order;
    Guarded<float> right(2 * 64), racing(2 * 64), dynamic(65);
    launch(rotate_kernel<true>, 2, 64, right.data());
    launch(rotate_kernel<false>, 2, 64, racing.data());
    int wrong = 0;
    for (unsigned i = 0; i < 2 * 64; ++i) {
      CHECK(right[i] == static_cast<float>((i + 1) % 64), "at %u: %g", i, right[i]);
      wrong += std::isnan(racing[i]);
    }
    CHECK(wrong > 0, "a missing barrier went unseen");
    dynamic[64] = 0;
    launch(dynamic_kernel, 1, 64, dynamic.data());
    CHECK(std::isnan(dynamic[63]) && dynamic[64] == 64, "dynamic shared memory: %g, atomics: %g", dynamic[63],
          dynamic[64]);
  }
  cuda_shim::order = Order::kForward;
}

void check_shuffles() {
  Guarded<double> down(64);
  Guarded<int> across(64), first(64);
  launch(shuffle_kernel, 1, dim3(8, 8), down.data(), across.data(), first.data());
  for (int i = 0; i < 64; ++i) {
    CHECK(down[i] == (i % 8 < 5 ? i + 3 : i) + 0.5, "down at %d: %g", i, down[i]);
    CHECK(across[i] == (i ^ 16), "across at %d: %d", i, across[i]);
    CHECK(first[i] == i / 32 * 32, "first at %d: %d", i, first[i]);
  }
}

// Every block of a cluster reads what the next has written; out has a number for each thread.
template <bool kLastBarrier>
__global__ void cluster_kernel(float* out) {
  GK_SHARED(float, fixed, 32);
  GK_DYNAMIC_SHARED(float, dynamic);
  auto cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank(), next = (rank + 1) % cluster.num_blocks(), thread = threadIdx.x;
  fixed[thread] = static_cast<float>(blockIdx.x);
  dynamic[thread] = static_cast<float>(thread);
  cluster.sync();
  out[blockIdx.x * 32 + thread] =
      100 * cluster.map_shared_rank(fixed, next)[31 - thread] + *cluster.map_shared_rank(&dynamic[thread], next);
  if (kLastBarrier) cluster.sync();
}

void check_clusters() {
  for (Order order : {Order::kForward, Order::kReversed}) {
    cuda_shim::order = order;
    for (unsigned size : {1u, 2u, 8u}) {
      cudaLaunchAttribute attribute = {cudaLaunchAttributeClusterDimension, {{size, 1, 1}}};
      const cudaLaunchConfig_t config = {3 * size, 32, 32 * sizeof(float), nullptr, &attribute, 1};
      Guarded<float> right(3 * size * 32), racing(3 * size * 32);
      CHECK(cudaLaunchKernelEx(&config, cluster_kernel<true>, right.data()) == cudaSuccess, "cluster of %u", size);
      CHECK(cudaLaunchKernelEx(&config, cluster_kernel<false>, racing.data()) == cudaSuccess, "cluster of %u", size);
      int wrong = 0;
      for (unsigned i = 0; i < 3 * size * 32; ++i) {
        const unsigned block = i / 32, next = block / size * size + (block + 1) % size;
        CHECK(right[i] == static_cast<float>(100 * next + i % 32), "cluster of %u, at %u: %g", size, i, right[i]);
        wrong += std::isnan(racing[i]);
      }
      CHECK((wrong > 0) == (size > 1), "cluster of %u: reading a block that has ended went unseen", size);
      attribute.val.clusterDim.x = 4 * size;
      CHECK(cudaLaunchKernelEx(&config, cluster_kernel<true>, right.data()) == cudaErrorInvalidConfiguration,
            "a grid of no whole clusters");
    }
  }
  cuda_shim::order = Order::kForward;
}

// Every finite value survives, and what lies halfway between two goes to the even one.
template <class T>
void check_conversions() {
  for (unsigned i = 0; i < 0xffff; ++i) {
    T value, next;
    value.bits = static_cast<uint16_t>(i), next.bits = static_cast<uint16_t>(i + 1);
    const float a = value, b = next;
    if (!std::isfinite(a)) continue;
    CHECK(T(a).bits == i, "%#x became %#x", i, T(a).bits);
    if (!std::isfinite(b) || std::signbit(a) != std::signbit(b)) continue;
    const float middle = a + (b - a) / 2;
    CHECK(T(middle).bits == i + i % 2, "%#x: the middle became %#x", i, T(middle).bits);
    CHECK(T(std::nextafter(middle, a)).bits == i, "%#x: below the middle", i);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(T(infinity) == infinity && T(-infinity) == -infinity, "infinity");
  CHECK(std::isnan(static_cast<float>(T(std::numeric_limits<float>::quiet_NaN()))), "NaN");
}

void check_guards() {
  Guarded<float> array(5, 1);
  CHECK(reinterpret_cast<uintptr_t>(array.data()) % 16 == 4, "misalignment");
  CHECK(std::isnan(array[4]) && array.intact(), "poison");
  for (int outside : {-1, 5}) {
    Guarded<float> written(5, 1);
    written.data()[outside] = 0;
    CHECK(!written.intact(), "a write at %d went unseen", outside);
  }
}

}  // namespace

int main() {
  check_barriers();
  check_shuffles();
  check_clusters();
  check_conversions<__nv_bfloat16>();
  check_conversions<__half>();
  check_guards();
  std::printf("cuda_shim: %d failures\n", failures);
  return failures ? 1 : 0;
}

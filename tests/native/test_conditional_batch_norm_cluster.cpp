// The CUDA kernels of conditional batch normalisation that run in clusters, run on the host; what must hold is what
// must hold of the others. Usage: test_conditional_batch_norm_cluster DTYPE
#include <cstdlib>

#include "../../csrc/cuda/conditional_batch_norm_cluster.cuh"
#include "conditional_batch_norm_checks.h"

namespace {

using cbn::cuda::ClusterLimits;
using cbn::cuda::ClusterPlan;

constexpr cuda_shim::Device kWithout = {0, 8, 0}, kWith = {1, 9, 16}, kTooSmall = {2, 9, 0};

// As large a cluster as may be, however little its blocks get.
ClusterLimits at_most(int blocks) {
  return {blocks, INT64_MAX, INT64_MAX, 8};
}

// Orders 0 and 1 by one launch each where there is a plan, else as usual.
struct Clusters {
  ClusterLimits limits;

  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
    const cbn::Problem& p = arrays.problem();
    Guarded<unsigned char> workspace(std::max(cbn::cuda::workspace_bytes(p, 0), cbn::cuda::workspace_bytes(p, 2)));
    Launches launches{nullptr};
    if (!cbn::cuda::forward_in_clusters(launches, arrays.forward(), limits)) {
      launches.error = static_cast<cudaError_t>(cbn::cuda::forward(arrays.forward(), workspace.data(), nullptr));
    }
    if (!cbn::cuda::backward_in_clusters(launches, arrays.backward(), nullptr, limits)) {
      launches.error = static_cast<cudaError_t>(cbn::cuda::backward(arrays.backward(), workspace.data(), nullptr));
    }
    CHECK(launches.error == cudaSuccess, "%s", arrays.name().c_str());
    const auto second = arrays.backward_backward();
    CHECK(cbn::cuda::backward_backward(second, workspace.data(), nullptr) == 0, "%s", arrays.name().c_str());
    CHECK(arrays.intact() && workspace.intact(), "%s", arrays.name().c_str());
  }
};

// The launchers as a caller has them.
struct Cuda {
  int forward_launches, backward_launches;

  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
    const cbn::Problem& p = arrays.problem();
    const auto launch = [&](int order, int expected, auto with) {
      Guarded<unsigned char> workspace(cbn::cuda::workspace_bytes(p, order));
      const int before = cuda_shim::launches;
      CHECK(with(workspace.data()) == 0 && workspace.intact(), "%s, order %d", arrays.name().c_str(), order);
      const int launches = cuda_shim::launches - before;
      CHECK(expected == 0 || launches == expected, "%s, order %d: %d launches, expected %d", arrays.name().c_str(),
            order, launches, expected);
    };
    launch(0, forward_launches, [&](void* w) { return cbn::cuda::forward(arrays.forward(), w, nullptr); });
    launch(1, backward_launches, [&](void* w) { return cbn::cuda::backward(arrays.backward(), w, nullptr); });
    launch(2, 0, [&](void* w) { return cbn::cuda::backward_backward(arrays.backward_backward(), w, nullptr); });
    CHECK(arrays.intact(), "%s", arrays.name().c_str());
  }
};

template <class T>
void check_shapes() {
  struct Shape {
    size_t n, c, vectors;
  };
  // One step; a step for some blocks and none for others; samples and steps that no number of blocks divides; rows of
  // more than a warp; several samples a row.
  const Shape contiguous[] = {{1, 1, 1}, {1, 3, 5}, {3, 5, 4}, {7, 1, 3}, {2, 3, 130}, {70, 2, 9}};
  // A group that is not full; more than one; fewer vectors than a group has; many samples, many pixels.
  const Shape last[] = {{1, 1, 1}, {5, 3, 3}, {2, 5, 19}, {1, 2, 300}, {150, 1, 3}};
  constexpr size_t kWidth = 16 / sizeof(T);
  for (int blocks : {1, 2, 8}) {
    const Clusters device = {at_most(blocks)};
    for (const Shape& s : contiguous) {
      check_case<T>(device, {s.n, s.c, s.vectors * kWidth, Layout::kContiguous, Activation::kRelu, true, 0});
    }
    for (const Shape& s : last) {
      check_case<T>(device, {s.n, s.c * kWidth, s.vectors, Layout::kChannelsLast, Activation::kLeakyRelu, true, 0});
    }
  }
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (bool batch_statistics : {true, false}) {
      check_case<T>(Clusters{at_most(4)}, {3, 24, 16, layout, Activation::kNone, batch_statistics, 0});
    }
  }
}

// By the limits that users get: large enough for several blocks, with labels too.
template <class T>
void check_launches() {
  const size_t l = (96 << 10) / sizeof(T);
  check_case<T>(Cuda{1, 1}, {1, 1, l, Layout::kContiguous, Activation::kRelu, true, 0});
  check_case<T>(Cuda{1, 3}, {3, 1, l / 6, Layout::kContiguous, Activation::kRelu, true, 0, 2});
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    check_case<T>(Cuda{1, 1}, {5, 16, 16, layout, Activation::kRelu, true, 0});
    check_case<T>(Cuda{1, 3}, {6, 8, 8, layout, Activation::kLeakyRelu, true, 0, 5});
    check_case<T>(Cuda{1, 3}, {6, 8, 8, layout, Activation::kLeakyRelu, false, 0, 5});
    check_case<T>(Cuda{3, 3}, {2, 3, 5, layout, Activation::kRelu, true, 0});    // no whole vectors
    check_case<T>(Cuda{3, 3}, {2, 16, 16, layout, Activation::kRelu, true, 1});  // nor aligned ones
    for (const cuda_shim::Device& device : {kWithout, kTooSmall}) {
      cuda_shim::device = device;
      check_case<T>(Cuda{3, 3}, {2, 16, 16, layout, Activation::kRelu, true, 0});
    }
    cuda_shim::device = kWith;
    setenv("GANKERNELS_CUDA_CLUSTERS", "0", 1);
    check_case<T>(Cuda{3, 3}, {2, 16, 16, layout, Activation::kRelu, true, 0});
    unsetenv("GANKERNELS_CUDA_CLUSTERS");
  }
}

// A label that is none spoils its sample and nothing else.
template <class T>
void check_labels_out_of_range() {
  const Case k = {6, 16, 8, Layout::kChannelsLast, Activation::kRelu, true, 0, 5};
  Arrays<T> got(k, random_inputs<T>(k));
  got.set_label(1, 5), got.set_label(4, -1);
  Cuda{1, 3}.run(got, false);
  for (auto* pixels : {&got.y, &got.dx}) {
    for (size_t i = 0; i < k.n * k.c * k.l; ++i) {
      const size_t n = i / (k.c * k.l);
      CHECK(std::isnan(static_cast<double>((**pixels)[k.place(i)])) == (n == 1 || n == 4), "sample %zu", n);
    }
  }
}

// Which sizes take how many blocks, and that every vector is one thread's.
template <class T>
void check_plans() {
  const auto problem = [](int64_t n, int64_t c, int64_t l, Layout layout, DType dtype) {
    return cbn::Problem{n, c, l, layout, dtype, Activation::kRelu, 0, 1e-5, true};
  };
  struct Expected {
    int64_t n, c, l;
    Layout layout;
    DType dtype;
    int order, blocks, kib;  // of a cluster; of a block's shared memory, rounded up
  };
  constexpr Layout kContiguous = Layout::kContiguous, kLast = Layout::kChannelsLast;
  constexpr DType kBF16 = DType::kBFloat16, kFP32 = DType::kFloat32;
  const Expected plans[] = {
      {16, 1536, 16, kLast, kBF16, 0, 2, 4},         {16, 1536, 16, kLast, kBF16, 1, 8, 5},
      {16, 768, 256, kLast, kBF16, 0, 8, 16},        {16, 768, 256, kLast, kBF16, 1, 8, 33},
      {16, 384, 1024, kLast, kBF16, 0, 8, 64},       {16, 384, 1024, kLast, kBF16, 1, 8, 129},
      {64, 192, 1024, kLast, kBF16, 0, 0, 0},        {16, 96, 16384, kLast, kBF16, 0, 0, 0},
      {64, 192, 1024, kContiguous, kBF16, 0, 2, 64}, {64, 192, 1024, kContiguous, kFP32, 1, 8, 65},
      {16, 96, 16384, kContiguous, kBF16, 0, 8, 64}, {16, 96, 16384, kContiguous, kFP32, 0, 8, 128},
      {16, 96, 16384, kContiguous, kFP32, 1, 0, 0},  {0, 96, 64, kContiguous, kFP32, 0, 0, 0},
  };
  for (const Expected& e : plans) {
    const ClusterPlan plan = cbn::cuda::plan_cluster(problem(e.n, e.c, e.l, e.layout, e.dtype), e.order);
    CHECK(plan.blocks == e.blocks && (plan.shared_bytes + 1023) / 1024 == e.kib,
          "[%d, %d, %d] %s, %d bytes, order %d: %d blocks of %d bytes", int(e.n), int(e.c), int(e.l),
          e.layout == kLast ? "channels_last" : "contiguous", e.dtype == kBF16 ? 2 : 4, e.order, plan.blocks,
          int(plan.shared_bytes));
  }
  std::mt19937 bits(1);
  for (int i = 0; i < 2000; ++i) {
    const Layout layout = i % 2 ? kLast : kContiguous;
    const int64_t n = 1 + bits() % (1 << bits() % 10), c = 16 * (1 + bits() % (1 << bits() % 8)),
                  l = 16 * (1 + bits() % (1 << bits() % 12));
    const ClusterPlan plan = cbn::cuda::plan_cluster(problem(n, c, l, layout, kDType<T>), i / 2 % 2);
    if (plan.blocks == 0) continue;
    CHECK(plan.sample_blocks * plan.step_blocks() == plan.blocks && plan.blocks <= 8 &&
              plan.sample_blocks * plan.block_samples >= n && plan.step_blocks() * plan.block_steps >= plan.steps &&
              plan.groups * plan.channels >= c && plan.threads % kWarp == 0 && plan.threads <= kThreads &&
              plan.rows() * plan.row_threads() == plan.threads && plan.channels <= 32 && plan.shared_bytes <= 200 << 10,
          "[%d, %d, %d], order %d", int(n), int(c), int(l), i / 2 % 2);
  }
}

// A pixel of x or dy that is NaN or infinite spoils what it spoils in the other kernels.
template <class T>
void check_places() {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (Numbers Inputs::* where : {&Inputs::x, &Inputs::dy}) {
      for (double special : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        const Case k = {3, 8, 48, layout, Activation::kLeakyRelu, true, 0};
        Inputs in = random_inputs<T>(k);
        (in.*where)[48 + 5] = special;
        Arrays<T> got(k, in), want(k, in);
        Clusters{at_most(8)}.run(got, false);
        cuda_shim::device = kWithout;
        Cuda{3, 3}.run(want, false);
        cuda_shim::device = kWith;
        const auto compare = [&](const char* what, const auto& a, const auto& b) {
          for (size_t i = 0; i < a->size(); ++i) {
            const double x = static_cast<double>((*a)[i]), y = static_cast<double>((*b)[i]);
            CHECK(std::isnan(x) == std::isnan(y) && std::isinf(x) == std::isinf(y), "%s of %s at %zu: %g and %g", what,
                  k.name().c_str(), i, x, y);
          }
        };
        compare("y", got.y, want.y);
        compare("dx", got.dx, want.dx);
        compare("dgain", got.dgain, want.dgain);
        compare("dbias", got.dbias, want.dbias);
      }
    }
  }
}

template <class T>
void check_all() {
  cuda_shim::device = kWith;
  check_plans<T>();
  check_shapes<T>();
  check_launches<T>();
  check_labels_out_of_range<T>();
  check_places<T>();
  check_special_values<T>(Clusters{at_most(8)}, 8, 48);
  check_far_from_zero<T>(Clusters{at_most(8)});
}

}  // namespace

int main(int count, char** arguments) {
  return check_dtype(count, arguments, []<class T>() { check_all<T>(); });
}

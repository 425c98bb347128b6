// The CUDA kernels of conditional batch normalisation, run on the host. Usage: test_conditional_batch_norm DTYPE
#include <array>

#include "../../csrc/cuda/tile.cuh"
#include "conditional_batch_norm_checks.h"

namespace {

struct Cuda {
  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
    launch(arrays, 0, [&](void* workspace) { return cbn::cuda::forward(arrays.forward(), workspace, nullptr); });
    launch(arrays, 1, [&](void* workspace) { return cbn::cuda::backward(arrays.backward(), workspace, nullptr); });
    launch(arrays, 2, [&](void* workspace) {
      return cbn::cuda::backward_backward(arrays.backward_backward(), workspace, nullptr);
    });
    CHECK(arrays.intact(), "%s", arrays.name().c_str());
  }

  template <class T>
  void statistics(Arrays<T>& arrays, double* mean, double* var) const {
    cbn::Forward args = arrays.forward();
    args.mean = mean, args.var = var;
    launch(arrays, 0, [&](void* workspace) { return cbn::cuda::statistics(args, workspace, nullptr); });
  }
  template <class T, class A>
  void backward_sums(Arrays<T>& arrays, A* sums) const {
    launch(arrays, 1,
           [&](void* workspace) { return cbn::cuda::backward_sums(arrays.backward(), sums, workspace, nullptr); });
  }
  template <class T, class A>
  void backward_apply(Arrays<T>& arrays, const A* terms) const {
    launch(arrays, 1,
           [&](void* workspace) { return cbn::cuda::backward_apply(arrays.backward(), terms, workspace, nullptr); });
  }
  template <class T, class A>
  void backward_backward_sums(Arrays<T>& arrays, A* sums) const {
    launch(arrays, 2, [&](void* workspace) {
      return cbn::cuda::backward_backward_sums(arrays.backward_backward(), sums, workspace, nullptr);
    });
  }
  template <class T, class A>
  void backward_backward_apply(Arrays<T>& arrays, const A* terms) const {
    launch(arrays, 2, [&](void* workspace) {
      return cbn::cuda::backward_backward_apply(arrays.backward_backward(), terms, workspace, nullptr);
    });
  }

 private:
  template <class T, class Launch>
  static void launch(const Arrays<T>& arrays, int order, Launch with) {
    Guarded<unsigned char> workspace(cbn::cuda::workspace_bytes(arrays.problem(), order));
    CHECK(with(workspace.data()) == 0, "%s, order %d", arrays.name().c_str(), order);
    CHECK(workspace.intact(), "%s, order %d", arrays.name().c_str(), order);
  }
};

template <class T>
void check_shapes() {
  struct Shape {
    size_t n, c, l, misalignment;
  };
  // 1; odd; vectors and not; aligned and not; many planes; planes of a block; split planes; more channels than a block
  // has threads.
  const Shape shapes[] = {{1, 1, 1, 0},    {2, 3, 1, 0},    {1, 1, 7, 0},  {3, 1, 33, 0},  {2, 3, 35, 0},
                          {2, 16, 16, 0},  {2, 16, 16, 1},  {5, 8, 48, 0}, {33, 40, 4, 0}, {2, 5, 300, 0},
                          {1, 3, 4800, 0}, {2, 1, 4111, 0}, {2, 268, 5, 0}};
  for (const Shape& s : shapes) {
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      for (Activation activation : {Activation::kNone, Activation::kRelu, Activation::kLeakyRelu}) {
        for (bool batch_statistics : {true, false}) {
          check_case<T>(Cuda(), {s.n, s.c, s.l, layout, activation, batch_statistics, s.misalignment});
        }
      }
    }
  }
  check_case<T>(Cuda(), {1, 2, 40000, Layout::kContiguous, Activation::kRelu, true, 0});  // split, in vectors
  check_case<T>(Cuda(),
                {1, 1, 69629, Layout::kContiguous, Activation::kRelu, true, 0});  // more splits than a fold has rows
  check_case<T>(Cuda(), {1, 255, 280, Layout::kChannelsLast, Activation::kRelu, true, 0});
  check_case<T>(Cuda(), {2, 8, 4100, Layout::kChannelsLast, Activation::kRelu, true, 0});
  check_case<T>(Cuda(), {2, 2100, 3, Layout::kChannelsLast, Activation::kRelu, true,
                         0});  // several blocks for a pixel's channels
}

// Sums over nothing are zero, means of nothing NaN.
template <class T>
void check_empty() {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (auto [n, c, l] : {std::array<size_t, 3>{0, 3, 4}, {2, 0, 4}, {2, 3, 0}, {0, 0, 0}}) {
      const Case k = {n, c, l, layout, Activation::kRelu, true, 0};
      Arrays<T> got(k, random_inputs<T>(k));
      Cuda().run(got, false);
      for (size_t i = 0; i < c; ++i) {
        CHECK(std::isnan((*got.mean)[i]) && std::isnan((*got.var)[i]), "%s", k.name().c_str());
      }
      for (auto* sums : {&got.dgain, &got.dbias, &got.second_dgain}) {
        for (size_t i = 0; i < n * c; ++i) CHECK((**sums)[i] == 0, "%s", k.name().c_str());
      }
    }
  }
}

// The reference's second order against central differences of its first.
void check_reference() {
  for (bool batch_statistics : {true, false}) {
    const Case k = {2, 2, 3, Layout::kContiguous, Activation::kLeakyRelu, batch_statistics, 0};
    const Inputs in = random_inputs<double>(k);
    const Outputs out = reference::conditional_batch_norm(in);
    const auto objective = [&](const Inputs& at) {
      const Outputs o = reference::conditional_batch_norm(at);
      long double sum = 0;
      for (size_t i = 0; i < in.x.size(); ++i) sum += in.ddx[i] * o.dx[i].value;
      for (size_t i = 0; i < in.gain.size(); ++i)
        sum += in.ddgain[i] * o.dgain[i].value + in.ddbias[i] * o.dbias[i].value;
      return sum;
    };
    const auto compare = [&](const char* what, Numbers Inputs::* argument, const Results& derivative) {
      for (size_t i = 0; i < derivative.size(); ++i) {
        constexpr double kStep = 1e-5;
        Inputs above = in, below = in;
        (above.*argument)[i] += kStep;
        (below.*argument)[i] -= kStep;
        const double difference = static_cast<double>((objective(above) - objective(below)) / (2 * kStep));
        CHECK(std::fabs(difference - derivative[i].value) <= 1e-7 * (1 + std::fabs(difference)),
              "%s at %zu: difference %.9g, derivative %.9g", what, i, difference,
              static_cast<double>(derivative[i].value));
      }
    };
    compare("ddy", &Inputs::dy, out.ddy);
    compare("dx", &Inputs::x, out.second_dx);
    compare("dgain", &Inputs::gain, out.second_dgain);
  }
}

// Offsets past 2^31, where there is no memory to run a kernel.
template <class T, Layout kLayout>
void check_large_offsets() {
  const int64_t n = 40, c = 256, l = 1 << 20;
  const Tiling tiling = gankernels::tile_pictures(n, c, l, kLayout, 1);
  threadIdx = dim3(tiling.x - 1, tiling.y - 1);
  blockDim = tiling.threads();
  const Tile tile = Access<T, kLayout, 1>::tile(tiling, static_cast<unsigned>(tiling.blocks - 1));
  const int64_t last = tile.offset + (tile.count - 1) * tile.stride;
  CHECK(last == n * c * l - 1, "got %lld", static_cast<long long>(last));
  CHECK(tile.n == n - 1 && tile.c == c - 1 && tile.slice == tiling.slices() - 1, "sample %lld, slice %lld",
        static_cast<long long>(tile.n), static_cast<long long>(tile.slice));
}

// A label that is none spoils its sample and nothing else, and no memory is touched that is not the table's.
template <class T>
void check_labels_out_of_range() {
  const Case k = {6, 3, 5, Layout::kChannelsLast, Activation::kRelu, true, 0, 5};
  Arrays<T> got(k, random_inputs<T>(k));
  got.set_label(1, 5), got.set_label(4, -1);
  Cuda().run(got, false);
  for (auto* pixels : {&got.y, &got.dx, &got.ddy, &got.second_dx}) {
    for (size_t i = 0; i < k.n * k.c * k.l; ++i) {
      const size_t n = i / (k.c * k.l);
      CHECK(std::isnan(static_cast<double>((**pixels)[k.place(i)])) == (n == 1 || n == 4), "sample %zu", n);
    }
  }
}

template <class T>
void check_all() {
  check_large_offsets<T, Layout::kContiguous>();
  check_large_offsets<T, Layout::kChannelsLast>();
  check_shapes<T>();
  check_empty<T>();
  check_parts<T>(Cuda());
  check_classes<T>(Cuda());
  check_samples<T>(Cuda());
  check_labels_out_of_range<T>();
  check_special_values<T>(Cuda());
  check_far_from_zero<T>(Cuda());
}

}  // namespace

int main(int count, char** arguments) {
  check_reference();
  return check_dtype(count, arguments, []<class T>() { check_all<T>(); });
}

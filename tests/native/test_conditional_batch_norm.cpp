// The CUDA kernels of conditional batch normalisation, run on the host. Usage: test_conditional_batch_norm DTYPE
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "conditional_batch_norm_case.h"

namespace {

using cuda_shim::Order;
using reference::Outputs;
using reference::Results;

// Roundings on the way of one term to a result; sums are trees whose leaves are some tens of terms, whose errors do not
// all have one sign.
constexpr double kRoundings = 16;

template <class T>
constexpr double kUnitRoundoff = std::is_same_v<T, double>          ? 0x1p-53
                                 : std::is_same_v<T, float>         ? 0x1p-24
                                 : std::is_same_v<T, __nv_bfloat16> ? 0x1p-8
                                                                    : 0x1p-11;
template <class T>
constexpr double kSubnormalRoundoff = std::is_same_v<T, __half> ? 0x1p-25 : 0;

// Whether rounding may have given z either sign.
template <class T>
bool undecided(Bounded z) {
  return std::fabs(z.value) <= kRoundings * kUnitRoundoff<Accumulator<T>> * z.size;
}

template <class T, class U>
void check_close(const char* what, const Case& k, const Guarded<U>& got, const Results& want, bool pictures,
                 const Results* z = nullptr) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = static_cast<double>(got[pictures ? k.place(i) : i]);
    if (z && undecided<T>((*z)[i]) && !std::isnan(value)) continue;
    const double expected = static_cast<double>(want[i].value);
    const double bound = static_cast<double>(kUnitRoundoff<U> * std::fabs(want[i].value) + kSubnormalRoundoff<U> +
                                             kRoundings * kUnitRoundoff<Accumulator<T>> * want[i].size);
    CHECK(std::fabs(value - want[i].value) <= bound, "%s of %s at %zu: got %.9g, expected %.9g +- %.2g", what,
          k.name().c_str(), i, value, expected, bound);
  }
}

template <class U>
void check_same(const char* what, const Case& k, const Guarded<U>& a, const Guarded<U>& b) {
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0, "%s of %s depends on the order of the threads",
        what, k.name().c_str());
}

template <class T>
void check_case(const Case& k) {
  Inputs in = random_inputs<T>(k);
  Outputs want = reference::conditional_batch_norm(in);
  if (!in.linear) {  // nothing but ddy may depend on the sign of an undecided z
    for (size_t i = 0; i < in.dy.size(); ++i) in.dy[i] = undecided<T>(want.z[i]) ? 0 : in.dy[i];
    want = reference::conditional_batch_norm(in);
  }
  Device<T> device(k, in), reversed(k, in);
  cuda_shim::order = Order::kReversed;
  reversed.run();
  cuda_shim::order = Order::kForward;
  device.run();
#define CHECK_PIXELS(name, ...)                                           \
  check_close<T>(#name, k, *device.name, want.name, true, ##__VA_ARGS__), \
      check_same(#name, k, *device.name, *reversed.name)
#define CHECK_PLANES(name) \
  check_close<T>(#name, k, *device.name, want.name, false), check_same(#name, k, *device.name, *reversed.name)
  CHECK_PIXELS(y);
  CHECK_PIXELS(dx);
  CHECK_PIXELS(ddy, in.linear ? nullptr : &want.z);
  CHECK_PIXELS(second_dx);
  CHECK_PLANES(mean);
  CHECK_PLANES(var);
  CHECK_PLANES(dgain);
  CHECK_PLANES(dbias);
  CHECK_PLANES(second_dgain);
#undef CHECK_PIXELS
#undef CHECK_PLANES
}

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
          check_case<T>({s.n, s.c, s.l, layout, activation, batch_statistics, s.misalignment});
        }
      }
    }
  }
  check_case<T>({1, 2, 40000, Layout::kContiguous, Activation::kRelu, true, 0});  // split, in vectors
  check_case<T>({1, 1, 69629, Layout::kContiguous, Activation::kRelu, true, 0});  // more splits than a fold has rows
  check_case<T>({1, 255, 280, Layout::kChannelsLast, Activation::kRelu, true, 0});
  check_case<T>({2, 8, 4100, Layout::kChannelsLast, Activation::kRelu, true, 0});
  check_case<T>(
      {2, 2100, 3, Layout::kChannelsLast, Activation::kRelu, true, 0});  // several blocks for a pixel's channels
}

// Sums over nothing are zero, means of nothing NaN.
template <class T>
void check_empty() {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (auto [n, c, l] : {std::array<size_t, 3>{0, 3, 4}, {2, 0, 4}, {2, 3, 0}, {0, 0, 0}}) {
      const Case k = {n, c, l, layout, Activation::kRelu, true, 0};
      Device<T> device(k, random_inputs<T>(k));
      device.run();
      for (size_t i = 0; i < c; ++i) {
        CHECK(std::isnan((*device.mean)[i]) && std::isnan((*device.var)[i]), "%s", k.name().c_str());
      }
      for (auto* sums : {&device.dgain, &device.dbias, &device.second_dgain}) {
        for (size_t i = 0; i < n * c; ++i) CHECK((**sums)[i] == 0, "%s", k.name().c_str());
      }
    }
  }
}

// One bad pixel spoils its channel where it enters the statistics, itself where it does not, and nothing else.
template <class T>
void check_special_values() {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (double special : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      for (bool batch_statistics : {true, false}) {
        const Case k = {2, 3, 50, layout, Activation::kRelu, batch_statistics, 0};
        const size_t bad = 70;  // in channel 1 of sample 0
        Inputs in = random_inputs<T>(k);
        in.gain[1] = 1;
        in.x[bad] = special;
        Device<T> device(k, in);
        device.run();
        for (size_t i = 0; i < in.x.size(); ++i) {
          const bool spoiled = batch_statistics ? i / k.l % k.c == 1 : i == bad;
          const double y = static_cast<double>((*device.y)[k.place(i)]);
          const bool right = !spoiled              ? std::isfinite(y)
                             : batch_statistics    ? std::isnan(y)
                             : std::isnan(special) ? std::isnan(y)
                                                   : std::isinf(y);
          CHECK(right, "y of %s at %zu: got %g with x = %g at %zu", k.name().c_str(), i, y, special, bad);
        }
      }
    }
  }
}

// E[x^2] - E[x]^2 would have no correct digit.
template <class T>
void check_far_from_zero() {
  if (sizeof(T) < sizeof(float)) return;
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    const Case k = {4, 4, 1000, layout, Activation::kNone, true, 0};
    const Inputs in = random_inputs<T>(k, 1e4);
    const Outputs want = reference::conditional_batch_norm(in);
    Device<T> device(k, in);
    device.run();
    for (size_t c = 0; c < k.c; ++c) {
      const double error = static_cast<double>((*device.var)[c] / want.var[c].value - 1);
      CHECK(std::fabs(error) <= 1e4 * kUnitRoundoff<T>, "var of %s: relative error %g", k.name().c_str(), error);
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
  CHECK(tile.plane == n * c - 1 && tile.c == c - 1 && tile.slice == tiling.slices() - 1, "plane %lld, slice %lld",
        static_cast<long long>(tile.plane), static_cast<long long>(tile.slice));
}

template <class T>
void check_all() {
  check_large_offsets<T, Layout::kContiguous>();
  check_large_offsets<T, Layout::kChannelsLast>();
  check_shapes<T>();
  check_empty<T>();
  check_special_values<T>();
  check_far_from_zero<T>();
}

}  // namespace

int main(int count, char** arguments) {
  const std::string dtype = count == 2 ? arguments[1] : "";
  check_reference();
  if (dtype == "float32") {
    check_all<float>();
  } else if (dtype == "float64") {
    check_all<double>();
  } else if (dtype == "bfloat16") {
    check_all<__nv_bfloat16>();
  } else if (dtype == "float16") {
    check_all<__half>();
  } else {
    std::fprintf(stderr, "usage: %s float32|float64|bfloat16|float16\n", arguments[0]);
    return 2;
  }
  std::printf("%s: %d failures\n", dtype.c_str(), failures);
  return failures ? 1 : 0;
}

// The CUDA kernels of spectral normalisation, run on the host, against plain loops. Usage: test_spectral_norm DTYPE
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/spectral_norm.h"
#include "check.h"
#include "cuda_shim/cuda_runtime.h"
#include "cuda_shim/guarded.h"
#include "dtypes.h"

using namespace gankernels;
namespace sn = spectral_norm;
using cuda_shim::Guarded;
using Real = long double;
using Numbers = std::vector<Real>;

namespace {

// Element (q, i) of the memory's matrix, and where along's element i stands in torch's order.
size_t place(const sn::Matrix& m, size_t q, size_t i) {
  return q / m.inner * m.columns + i * m.inner + q % m.inner;
}
size_t order(const sn::Matrix& m, size_t i) {
  return m.transposed ? i : i % m.channels * m.positions + i / m.channels;
}

Real normalise(Numbers& x, Real eps) {
  Real squares = 0;
  for (Real a : x) squares += a * a;
  const Real norm = std::sqrt(squares);
  for (Real& a : x) a /= std::max(norm, eps);
  return norm;
}

// Everything that a call gives, in exact arithmetic. along is v, across u, or the other way round.
struct Reference {
  Numbers along, across, y, dw, ddy, second_dw;
  Real sigma = 0;
  Real of_dw = 0, of_ddy = 0, of_second_dw = 0;  // the largest terms: where they cancel, their rounding stays

  Reference(const sn::Matrix& m, const Numbers& w, const Numbers& along0, const Numbers& across0, const Numbers& dy,
            const Numbers& a, int iterations, Real eps)
      : along(along0), across(across0), y(w), dw(w), ddy(w), second_dw(w) {
    const size_t height = across.size(), width = along.size();
    const auto over_along = [&] {
      Numbers sums(height, 0);
      for (size_t q = 0; q < height; ++q)
        for (size_t i = 0; i < width; ++i) sums[q] += w[place(m, q, i)] * along[order(m, i)];
      return sums;
    };
    const auto to_across = [&] { normalise(across = over_along(), eps); };
    const auto to_along = [&] {
      std::fill(along.begin(), along.end(), 0);
      for (size_t q = 0; q < height; ++q)
        for (size_t i = 0; i < width; ++i) along[order(m, i)] += w[place(m, q, i)] * across[q];
      normalise(along, eps);
    };
    for (int k = 0; k < iterations; ++k) m.transposed ? (to_along(), to_across()) : (to_across(), to_along());
    const Numbers product = over_along();
    for (size_t q = 0; q < height; ++q) sigma += product[q] * across[q];
    Real dy_w = 0, a_uv = 0, a_dy = 0;
    const auto uv = [&](size_t q, size_t i) { return along[order(m, i)] * across[q]; };
    const auto each = [&](auto&& f) {
      for (size_t q = 0; q < height; ++q)
        for (size_t i = 0; i < width; ++i) f(place(m, q, i), uv(q, i));
    };
    each([&](size_t n, Real uv) { dy_w += dy[n] * w[n], a_uv += a[n] * uv, a_dy += a[n] * dy[n]; });
    const Real c = dy_w / sigma;
    each([&](size_t n, Real uv) {
      y[n] = w[n] / sigma;
      dw[n] = (dy[n] - c * uv) / sigma;
      ddy[n] = (a[n] - a_uv * w[n] / sigma) / sigma;
      second_dw[n] = ((2 * a_uv * c - a_dy) * uv - a_uv * dy[n]) / sigma / sigma;
      of_dw = std::max(of_dw, (std::fabs(dy[n]) + std::fabs(c * uv)) / std::fabs(sigma));
      of_ddy = std::max(of_ddy, (std::fabs(a[n]) + std::fabs(a_uv * w[n] / sigma)) / std::fabs(sigma));
      of_second_dw = std::max(
          of_second_dw,
          ((2 * std::fabs(a_uv * c) + std::fabs(a_dy)) * std::fabs(uv) + std::fabs(a_uv * dy[n])) / sigma / sigma);
    });
  }
};

struct Shape {
  sn::Matrix matrix;
  size_t misalignment = 0;
};

template <class T>
Numbers random_numbers(std::mt19937& bits, size_t size) {
  Numbers numbers(size);
  for (Real& number : numbers)
    number = Real(static_cast<AccumulatorOf<T>>(static_cast<T>(static_cast<AccumulatorOf<T>>(bits() * 0x1p-31 - 1))));
  return numbers;
}

template <class T>
std::unique_ptr<Guarded<T>> array(size_t size, size_t misalignment = 0) {
  return std::make_unique<Guarded<T>>(size, misalignment);
}
template <class T>
std::unique_ptr<Guarded<T>> array(const Numbers& from, size_t misalignment = 0) {
  auto to = array<T>(from.size(), misalignment);
  for (size_t i = 0; i < from.size(); ++i) (*to)[i] = static_cast<T>(static_cast<AccumulatorOf<T>>(from[i]));
  return to;
}

// One weight's arrays on the "device", and what they should hold.
template <class T, class Out>
struct Weight {
  using A = AccumulatorOf<T>;
  sn::Matrix m;
  Numbers w, dy, a, along, across;
  std::unique_ptr<Guarded<T>> w_, a_, dw_, second_dw_;
  std::unique_ptr<Guarded<Out>> dy_, y_, ddy_;
  std::unique_ptr<Guarded<A>> along0_, across0_, along_, across_, sigma_;

  Weight(std::mt19937& bits, const Shape& shape) : m(shape.matrix) {
    const size_t size = m.size(), width = m.columns / m.inner, off = shape.misalignment;
    w = random_numbers<T>(bits, size), a = random_numbers<T>(bits, size), dy = random_numbers<Out>(bits, size);
    along = random_numbers<A>(bits, width), across = random_numbers<A>(bits, m.across());
    w_ = array<T>(w, off), a_ = array<T>(a, off), dw_ = array<T>(size, off), second_dw_ = array<T>(size, off);
    dy_ = array<Out>(dy, off), y_ = array<Out>(size, off), ddy_ = array<Out>(size, off);
    along0_ = array<A>(along), across0_ = array<A>(across);
    along_ = array<A>(width), across_ = array<A>(m.across()), sigma_ = array<A>(1);
  }
  A* u(Guarded<A>& along, Guarded<A>& across) const { return m.transposed ? along.data() : across.data(); }
  A* v(Guarded<A>& along, Guarded<A>& across) const { return m.transposed ? across.data() : along.data(); }
  sn::Forward forward() {
    return {m,
            w_->data(),
            u(*along0_, *across0_),
            v(*along0_, *across0_),
            u(*along_, *across_),
            v(*along_, *across_),
            sigma_->data(),
            y_->data()};
  }
  sn::Backward backward() {
    return {m, dy_->data(), w_->data(), u(*along_, *across_), v(*along_, *across_), sigma_->data(), dw_->data()};
  }
  // dw in dy's own memory.
  sn::Backward in_place() {
    sn::Backward layer = backward();
    layer.dw = dy_->data();
    return layer;
  }
  void check_in_place() const {
    for (int64_t i = 0; i < m.size(); ++i)
      CHECK(Real(static_cast<A>((*dy_)[i])) == Real(static_cast<A>((*dw_)[i])), "in place, dw[%d]", int(i));
    CHECK(dy_->intact(), "dy");
  }
  sn::BackwardBackward backward_backward() {
    return {m,
            a_->data(),
            dy_->data(),
            w_->data(),
            u(*along_, *across_),
            v(*along_, *across_),
            sigma_->data(),
            ddy_->data(),
            second_dw_->data()};
  }

  void compare(const char* what, const Numbers& want, const auto& got, Real unit, Real largest = 0) const {
    for (Real x : want) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < want.size(); ++i) {
      const Real error = std::fabs(Real(static_cast<A>(got[i])) - want[i]);
      // A rounding of each of the sums' terms, in the worst case, and one to the element type.
      const Real allowed = largest * (64 * kUnitRoundoff<A> * std::sqrt(Real(m.size())) + 2 * unit);
      CHECK(error <= allowed, "%s[%zu] of [%d, %d] inner %d: got %Lg, expected %Lg", what, i, int(m.rows),
            int(m.columns), int(m.inner), Real(static_cast<A>(got[i])), want[i]);
    }
    CHECK(got.intact(), "%s", what);
  }
  void check(int iterations, Real eps) const {
    const Reference want(m, w, along, across, dy, a, iterations, eps);
    compare("along", want.along, *along_, 0);
    compare("across", want.across, *across_, 0);
    compare("sigma", {want.sigma}, *sigma_, 0);
    compare("y", want.y, *y_, kUnitRoundoff<Out>);
    compare("dw", want.dw, *dw_, kUnitRoundoff<T>, want.of_dw);
    compare("ddy", want.ddy, *ddy_, kUnitRoundoff<Out>, want.of_ddy);
    compare("second dw", want.second_dw, *second_dw_, kUnitRoundoff<T>, want.of_second_dw);
  }
};

template <class Layer>
void launch(const sn::Options& options, const std::vector<Layer>& layers) {
  const int count = static_cast<int>(layers.size());
  Guarded<unsigned char> workspace(sn::cuda::workspace_bytes(options, layers.data(), count));
  CHECK(sn::cuda::launch(options, layers.data(), count, workspace.data(), nullptr) == 0, "launch");
  CHECK(workspace.intact(), "workspace");
}

sn::Matrix rows(int64_t h, int64_t channels, int64_t positions = 1) {
  return {h, channels * positions, 1, channels, positions, false};
}
sn::Matrix columns(int64_t before, int64_t h, int64_t inner) {
  return {before, h * inner, inner, 1, 1, true};
}

template <class T, class Out>
void check_all() {
  // One number; one row; one column; odd; vectors, aligned and not; runs of a warp and of a block; past a span and a
  // split; channels_last; transposed, with and without neighbours. Repeated past what one table holds.
  const std::vector<Shape> shapes = {
      {rows(1, 1)},       {rows(1, 37)},         {rows(41, 1)},          {rows(7, 27)},        {rows(16, 64)},
      {rows(16, 64), 1},  {rows(5, 2100)},       {rows(3, 2304)},        {rows(130, 72)},      {rows(8, 16, 9)},
      {rows(5, 3, 4)},    {columns(9, 8, 1)},    {columns(6, 5, 9)},     {columns(70, 16, 4)}, {columns(3, 300, 16)},
      {columns(1, 6, 7)}, {columns(100, 24, 1)}, {columns(12, 8, 4), 1},
  };
  for (int iterations : {0, 1, 2}) {
    for (bool reversed : {false, true}) {
      cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
      const sn::Options options = {kDType<T>, kDType<Out>, iterations, 1e-12};
      std::mt19937 bits(1);
      std::vector<std::unique_ptr<Weight<T, Out>>> weights;
      for (int copies = 0; copies < (iterations == 1 ? 3 : 1); ++copies)
        for (const Shape& shape : shapes) weights.push_back(std::make_unique<Weight<T, Out>>(bits, shape));
      std::vector<sn::Forward> forward;
      std::vector<sn::Backward> backward, in_place;
      std::vector<sn::BackwardBackward> backward_backward;
      for (auto& weight : weights) {
        forward.push_back(weight->forward());
        backward.push_back(weight->backward());
        in_place.push_back(weight->in_place());
        backward_backward.push_back(weight->backward_backward());
      }
      launch(options, forward);
      launch(options, backward);
      launch(options, backward_backward);
      for (auto& weight : weights) weight->check(iterations, 1e-12L);
      if (std::is_same_v<T, Out> && iterations == 0) {
        launch(options, in_place);
        for (auto& weight : weights) weight->check_in_place();
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  return check_dtype(count, arguments, []<class T>() {
    check_all<T, T>();
    if constexpr (std::is_same_v<T, float>) {
      check_all<float, __nv_bfloat16>();
      check_all<float, __half>();
    }
  });
}

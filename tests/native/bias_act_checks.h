// bias_act on whatever device, held against its definition in long double. A device is an object with
//   template <class T> void run(Arrays<T>& arrays, bool reversed) const
// which runs all three orders. `reversed` asks for the same work in another order, which must not change a bit.
#pragma once

#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/bias_act.h"
#include "check.h"
#include "cuda_shim/guarded.h"
#include "dtypes.h"

using namespace gankernels;
using cuda_shim::Guarded;

// Roundings on the way of one number, in units of the accumulation type; sums add the square root of their length.
constexpr double kRoundings = 24;

struct Case {
  size_t outer, channels, inner;
  Activation activation;
  bool clamped, with_bias;
  size_t misalignment;  // in elements

  size_t size() const { return outer * channels * inner; }
  std::string name() const {
    char text[160];
    std::snprintf(text, sizeof text, "[%zu, %zu, %zu] activation %d%s%s, misaligned by %zu", outer, channels, inner,
                  static_cast<int>(activation), clamped ? ", clamped" : "", with_bias ? "" : ", no bias", misalignment);
    return text;
  }
};

struct Derivatives {
  long double value, first, second;
};

// The textbook's formulas, in long double.
inline Derivatives derivatives(Activation activation, long double z, long double slope) {
  const long double s = 1 / (1 + std::exp(-z)), t = std::tanh(z), pi = 3.14159265358979323846L;
  const long double pdf = std::exp(-z * z / 2) / std::sqrt(2 * pi), cdf = std::erfc(-z / std::sqrt(2.0L)) / 2;
  switch (activation) {
    case Activation::kNone:
      return {z, 1, 0};
    case Activation::kRelu:
      return {z > 0 ? z : 0, z > 0 ? 1.0L : 0, 0};
    case Activation::kLeakyRelu:
      return {z > 0 ? z : slope * z, z > 0 ? 1 : slope, 0};
    case Activation::kTanh:
      return {t, 1 - t * t, -2 * t * (1 - t * t)};
    case Activation::kSigmoid:
      return {s, s * (1 - s), s * (1 - s) * (1 - 2 * s)};
    case Activation::kSilu:
      return {z * s, s + z * s * (1 - s), s * (1 - s) * (2 + z * (1 - 2 * s))};
    case Activation::kSoftplus:
      return {std::log1p(std::exp(z)), s, s * (1 - s)};
    case Activation::kGelu:
      return {z * cdf, cdf + z * pdf, pdf * (2 - z * z)};
  }
  return {};
}

// What the passes read and write, the outputs filled with NaN.
template <class T>
struct Arrays {
  using A = AccumulatorOf<T>;
  using Pixels = std::unique_ptr<Guarded<T>>;
  using Channels = std::unique_ptr<Guarded<A>>;

  Case k;
  bias_act::Problem problem;
  Pixels x, dy, ddx, y, dx, ddy, second_dx;
  Channels bias, ddbias, dbias, second_dbias;

  explicit Arrays(const Case& k) : k(k) {
    problem = {static_cast<int64_t>(k.outer),
               static_cast<int64_t>(k.channels),
               static_cast<int64_t>(k.inner),
               kDType<T>,
               k.activation,
               0.25,
               1.5,
               0.875,
               k.clamped};
    for (Pixels* p : {&x, &dy, &ddx, &y, &dx, &ddy, &second_dx})
      *p = std::make_unique<Guarded<T>>(k.size(), k.misalignment);
    for (Channels* p : {&bias, &ddbias, &dbias, &second_dbias}) *p = std::make_unique<Guarded<A>>(k.channels);
    std::mt19937 bits(static_cast<unsigned>(k.size() * 31 + k.channels));
    const auto number = [&] { return static_cast<A>(static_cast<int>(bits() % 8191) - 4095) / A(1024); };
    for (Pixels* p : {&x, &dy, &ddx})
      for (size_t i = 0; i < k.size(); ++i) (**p)[i] = static_cast<T>(number());
    for (Channels* p : {&bias, &ddbias})
      for (size_t c = 0; c < k.channels; ++c) (**p)[c] = number();
  }

  const void* bias_data() const { return k.with_bias ? bias->data() : nullptr; }
  const void* x_data() const { return k.activation == Activation::kNone && !k.clamped ? nullptr : x->data(); }
  bool smooth() const { return !is_piecewise_linear(k.activation); }

  bias_act::Forward forward() const { return {problem, x->data(), bias_data(), y->data()}; }
  bias_act::Backward backward() const {
    return {problem, dy->data(), x_data(), bias_data(), dx->data(), dbias->data()};
  }
  bias_act::BackwardBackward backward_backward() const {
    return {problem,
            ddx->data(),
            ddbias->data(),
            smooth() ? dy->data() : nullptr,
            x_data(),
            bias_data(),
            ddy->data(),
            smooth() ? second_dx->data() : nullptr,
            smooth() ? second_dbias->data() : nullptr};
  }

  // Whether nothing beside the arrays was written.
  bool intact() const {
    for (auto* p : {&x, &dy, &ddx, &y, &dx, &ddy, &second_dx})
      if (!(*p)->intact()) return false;
    for (auto* p : {&bias, &ddbias, &dbias, &second_dbias})
      if (!(*p)->intact()) return false;
    return true;
  }
};

template <class T, class U>
void check_number(const char* what, const Case& k, size_t i, U got, long double want, double size, double roundings) {
  const double bound = kUnitRoundoff<U> * std::fabs(static_cast<double>(want)) + (sizeof(U) == 2 ? 0x1p-25 : 0) +
                       roundings * kUnitRoundoff<AccumulatorOf<T>> * size;
  CHECK(std::fabs(static_cast<double>(got) - static_cast<double>(want)) <= bound,
        "%s of %s at %zu: got %.9g, expected %.9g +- %.2g", what, k.name().c_str(), i, static_cast<double>(got),
        static_cast<double>(want), bound);
}

template <class T, class Device>
void check_case(const Device& device, const Case& k) {
  using A = AccumulatorOf<T>;
  Arrays<T> got(k), reversed(k);
  device.run(got, false);
  device.run(reversed, true);
  const auto& p = got.problem;
  std::vector<long double> dbias(k.channels), second_dbias(k.channels);
  std::vector<double> sizes(k.channels);
  for (size_t i = 0; i < k.size(); ++i) {
    const size_t c = i / k.inner % k.channels;
    // Rounded as the kernels do it: all sides must find the same side of a kink.
    const A z = static_cast<A>((*got.x)[i]) + (k.with_bias ? (*got.bias)[c] : 0);
    const Derivatives f = derivatives(k.activation, z, p.slope);
    const long double dy = static_cast<A>((*got.dy)[i]);
    const long double a = static_cast<A>((*got.ddx)[i]) + static_cast<long double>((*got.ddbias)[c]);
    const long double v = p.gain * f.value;
    const bool inside = !k.clamped || std::fabs(v) <= p.clamp;
    const long double dz = inside ? p.gain * f.first * dy : 0, second = inside ? p.gain * f.second * dy * a : 0;
    const bool undecided = k.clamped && std::fabs(std::fabs(v) - p.clamp) < 64 * kUnitRoundoff<A>;
    const double size = 1 + std::fabs(static_cast<double>(z));
    check_number<T>("y", k, i, (*got.y)[i], inside ? v : std::copysign(p.clamp, static_cast<double>(v)), size,
                    kRoundings);
    dbias[c] += undecided ? static_cast<long double>((*got.dx)[i]) : dz;
    second_dbias[c] += undecided && got.smooth() ? static_cast<long double>((*got.second_dx)[i]) : second;
    sizes[c] += size * size;
    if (undecided) continue;
    const double both = size * (1 + std::fabs(static_cast<double>(dy))) * (1 + std::fabs(static_cast<double>(a)));
    check_number<T>("dx", k, i, (*got.dx)[i], dz, both, kRoundings);
    check_number<T>("ddy", k, i, (*got.ddy)[i], inside ? p.gain * f.first * a : 0, both, kRoundings);
    if (got.smooth()) check_number<T>("second dx", k, i, (*got.second_dx)[i], second, both, kRoundings);
  }
  for (size_t c = 0; c < k.channels; ++c) {
    // A clamped number at the clamp leaves its rounding to T in the sums.
    const double size = sizes[c] * 16, roundings = k.clamped && sizeof(T) == 2 ? 0x1p16 : kRoundings;
    check_number<T>("dbias", k, c, (*got.dbias)[c], dbias[c], size, roundings);
    if (got.smooth()) check_number<T>("second dbias", k, c, (*got.second_dbias)[c], second_dbias[c], size, roundings);
  }
  const auto same = [&](const char* what, const auto& a, const auto& b) {
    CHECK(std::memcmp(a->data(), b->data(), a->size() * sizeof(*a->data())) == 0, "%s of %s depends on the order", what,
          k.name().c_str());
  };
  same("y", got.y, reversed.y);
  same("dx", got.dx, reversed.dx);
  same("ddy", got.ddy, reversed.ddy);
  same("dbias", got.dbias, reversed.dbias);
  same("second dx", got.second_dx, reversed.second_dx);
  same("second dbias", got.second_dbias, reversed.second_dbias);
  CHECK(got.intact() && reversed.intact(), "%s", k.name().c_str());
}

constexpr Activation kActivations[] = {Activation::kNone,     Activation::kRelu,    Activation::kLeakyRelu,
                                       Activation::kTanh,     Activation::kSigmoid, Activation::kSilu,
                                       Activation::kSoftplus, Activation::kGelu};

template <class T, class Device>
void check_shapes(const Device& device) {
  struct Shape {
    size_t outer, channels, inner, misalignment;
  };
  // 1; odd; vectors and not; aligned and not; channels innermost; short and long planes; one channel.
  const Shape shapes[] = {{1, 1, 1, 0},  {2, 3, 5, 0},  {1, 1, 333, 1}, {3, 2, 64, 0},  {2, 3, 101, 1}, {7, 16, 1, 0},
                          {5, 33, 1, 1}, {2, 5, 31, 0}, {1, 200, 1, 0}, {300, 3, 1, 0}, {40, 8, 4, 0}};
  for (const Shape& s : shapes)
    for (Activation activation : kActivations)
      for (bool clamped : {false, true})
        check_case<T>(device, {s.outer, s.channels, s.inner, activation, clamped, s.channels > 1, s.misalignment});
}

// A NaN stays where it is, and in its channel's sum.
template <class T, class Device>
void check_special_values(const Device& device) {
  for (size_t inner : {size_t(1), size_t(50)}) {
    for (Activation activation : kActivations) {
      const Case k = {6, 3, inner, activation, false, true, 0};
      const size_t bad = 4 * inner;  // in channel 1
      Arrays<T> got(k);
      (*got.x)[bad] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
      device.run(got, false);
      for (size_t i = 0; i < k.size(); ++i)
        CHECK(std::isnan(static_cast<float>((*got.y)[i])) == (i == bad), "y of %s at %zu", k.name().c_str(), i);
      if (got.smooth())
        for (size_t c = 0; c < 3; ++c)
          CHECK(std::isnan(static_cast<double>((*got.dbias)[c])) == (c == 1), "dbias of %s", k.name().c_str());
    }
  }
}

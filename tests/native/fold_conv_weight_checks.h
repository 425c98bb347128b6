// fold_conv_weight on whatever device, held against the definition in long double. A device is an object with
//   void run(const fold_conv_weight::Args& args, bool reversed) const
// `reversed` asks for the same work in another order, which must not change a bit.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/fold_conv_weight.h"
#include "check.h"
#include "cuda_shim/guarded.h"
#include "dtypes.h"

using namespace gankernels;
using cuda_shim::Guarded;

struct Case {
  int64_t outputs, inputs;
  int kernel;
  bool up, transpose;  // transpose: from the folded weight's gradient to the weight's
  Layout from, to;

  std::string name() const {
    char text[128];
    std::snprintf(text, sizeof text, "[%d, %d, %d, %d] %s%s, layouts %d to %d", static_cast<int>(outputs),
                  static_cast<int>(inputs), kernel, kernel, up ? "up" : "down", transpose ? " transposed" : "",
                  static_cast<int>(from), static_cast<int>(to));
    return text;
  }
};

// The weight's tap that stands at (k, l), and zero around it.
template <class At>
Bounded shifted_sum(int size, int k, int l, At at) {
  Bounded sum;
  for (int dk = 0; dk < 2; ++dk)
    for (int dl = 0; dl < 2; ++dl)
      if (k - dk >= 0 && k - dk < size && l - dl >= 0 && l - dl < size) sum += at(k - dk, l - dl);
  return sum;
}

template <class T, class Device>
void check_case(const Device& device, const Case& k) {
  const int taps = k.kernel + 1, from_taps = k.transpose ? taps : k.kernel, to_taps = k.transpose ? k.kernel : taps;
  const int64_t pairs = k.outputs * k.inputs;
  const fold_conv_weight::Problem p = {
      k.outputs,
      k.inputs,
      from_taps,
      to_taps,
      k.up,
      kDType<T>,
      fold_conv_weight::strides_of(k.outputs, k.inputs, from_taps, k.up && k.transpose, k.from),
      fold_conv_weight::strides_of(k.outputs, k.inputs, to_taps, k.up && !k.transpose, k.to)};
  Guarded<T> from(pairs * from_taps * from_taps), to(pairs * to_taps * to_taps), reversed(pairs * to_taps * to_taps);
  std::mt19937 bits(static_cast<unsigned>(pairs * 31 + taps));
  for (size_t i = 0; i < from.size(); ++i)
    from[i] = static_cast<T>(static_cast<float>(static_cast<int>(bits() % 8191) - 4095) / 1024.0f);
  device.run({p, from.data(), to.data()}, false);
  device.run({p, from.data(), reversed.data()}, true);
  CHECK(to.intact() && reversed.intact(), "%s", k.name().c_str());
  CHECK(std::memcmp(to.data(), reversed.data(), to.size() * sizeof(T)) == 0, "%s", k.name().c_str());
  for (int64_t o = 0; o < k.outputs; ++o)
    for (int64_t i = 0; i < k.inputs; ++i)
      for (int y = 0; y < to_taps; ++y)
        for (int x = 0; x < to_taps; ++x) {
          const auto at = [&](int sy, int sx) {
            return Bounded(
                static_cast<float>(from[o * p.from.output + i * p.from.input + (sy * from_taps + sx) * p.from.tap]));
          };
          // Folding sums the weight at shifts 0 and 1, up of the flipped one; its transpose sums at shifts 0 and -1.
          Bounded sum =
              !k.transpose
                  ? (k.up ? shifted_sum(k.kernel, k.kernel - y, k.kernel - x, at) : shifted_sum(k.kernel, y, x, at))
                  : (k.up ? shifted_sum(taps, k.kernel - y, k.kernel - x, at) : shifted_sum(taps, y + 1, x + 1, at));
          const long double want = sum.value * (k.up ? 1 : 0.25L);
          const double got = static_cast<double>(to[o * p.to.output + i * p.to.input + (y * to_taps + x) * p.to.tap]);
          const double bound = kUnitRoundoff<T> * std::fabs(static_cast<double>(want)) +
                               4 * kUnitRoundoff<float> * static_cast<double>(sum.size) +
                               (sizeof(T) == 2 ? 0x1p-25 : 0);
          CHECK(std::fabs(got - static_cast<double>(want)) <= bound, "%s at %d, %d, %d, %d: got %.9g, expected %.9g",
                k.name().c_str(), static_cast<int>(o), static_cast<int>(i), y, x, got, static_cast<double>(want));
        }
}

// Sizes 1, odd ones, past a tile, past a direct block; every kernel size, direction and layout.
template <class T, class Device>
void check_all(const Device& device) {
  struct Shape {
    int64_t outputs, inputs;
    int kernel;
  };
  for (const Shape& s : {Shape{1, 1, 3}, Shape{5, 3, 1}, Shape{33, 70, 3}, Shape{70, 33, 3}, Shape{4, 35, 5},
                         Shape{2, 600, 3}, Shape{3, 2, 15}})
    for (bool up : {true, false})
      for (bool transpose : {true, false})
        for (Layout from : {Layout::kContiguous, Layout::kChannelsLast})
          for (Layout to : {Layout::kContiguous, Layout::kChannelsLast})
            check_case<T>(device, {s.outputs, s.inputs, s.kernel, up, transpose, from, to});
}

// The weight as a transposed convolution takes it: every tap and channel in its new place, and nothing added. The CPU's
// kernel alone does this.
template <class T, class Device>
void check_turned(const Device& device, int64_t outputs, int64_t inputs, int taps, Layout from_layout,
                  Layout to_layout) {
  const fold_conv_weight::Problem p = {outputs,
                                       inputs,
                                       taps,
                                       taps,
                                       /*up=*/true,
                                       kDType<T>,
                                       fold_conv_weight::strides_of(outputs, inputs, taps, false, from_layout),
                                       fold_conv_weight::strides_of(outputs, inputs, taps, true, to_layout)};
  const int64_t area = int64_t(taps) * taps;
  Guarded<T> from(outputs * inputs * area), to(outputs * inputs * area);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(static_cast<float>(i % 2039));
  device.run({p, from.data(), to.data()}, true);
  CHECK(to.intact(), "%d taps", taps);
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t tap = 0; tap < area; ++tap) {
        const T want = from[o * p.from.output + i * p.from.input + (area - 1 - tap) * p.from.tap];
        const T got = to[o * p.to.output + i * p.to.input + tap * p.to.tap];
        CHECK(std::memcmp(&got, &want, sizeof(T)) == 0, "%d taps: [%d, %d, %d]", taps, static_cast<int>(i),
              static_cast<int>(o), static_cast<int>(tap));
      }
}

template <class T, class Device>
void check_all_turned(const Device& device) {
  for (Layout from : {Layout::kContiguous, Layout::kChannelsLast})
    for (Layout to : {Layout::kContiguous, Layout::kChannelsLast}) {
      check_turned<T>(device, 1, 1, 3, from, to);
      check_turned<T>(device, 33, 70, 3, from, to);
      check_turned<T>(device, 70, 33, 5, from, to);
      check_turned<T>(device, 5, 3, 1, from, to);
    }
}

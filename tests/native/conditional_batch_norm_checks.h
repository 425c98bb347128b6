// What every device's conditional batch normalisation has to hold. A device is an object with
//   template <class T> void run(Arrays<T>& arrays, bool reversed) const
// which runs all three orders; the statistics of the first go into the others, as a caller's do. `reversed` asks for
// the same work in another order, which must not change a bit. For check_parts it also has
// statistics(arrays, mean, var), backward_sums(arrays, sums), backward_apply(arrays, terms) and those of the second
// order, with pointers to A.
#pragma once

#include <cstring>
#include <limits>

#include "conditional_batch_norm_case.h"

using reference::Outputs;
using reference::Results;

// Roundings on the way of one term to a result; sums are trees whose leaves are some tens of terms, whose errors do not
// all have one sign.
constexpr double kRoundings = 16;

template <class T>
constexpr double kSubnormalRoundoff = std::is_same_v<T, __half> ? 0x1p-25 : 0;

// Whether rounding may have given z either sign.
template <class T>
bool undecided(Bounded z) {
  return std::fabs(z.value) <= kRoundings * kUnitRoundoff<AccumulatorOf<T>> * z.size;
}

template <class T, class U>
void check_close(const char* what, const Case& k, const Guarded<U>& got, const Results& want, bool pictures,
                 const Results* z = nullptr) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = static_cast<double>(got[pictures ? k.place(i) : i]);
    if (z && undecided<T>((*z)[i]) && !std::isnan(value)) continue;
    const double expected = static_cast<double>(want[i].value);
    if (std::isnan(expected)) {  // not to be written
      CHECK(std::isnan(value), "%s of %s at %zu: got %.9g, expected nothing", what, k.name().c_str(), i, value);
      continue;
    }
    const double bound = static_cast<double>(kUnitRoundoff<U> * std::fabs(want[i].value) + kSubnormalRoundoff<U> +
                                             kRoundings * kUnitRoundoff<AccumulatorOf<T>> * want[i].size);
    CHECK(std::fabs(value - want[i].value) <= bound, "%s of %s at %zu: got %.9g, expected %.9g +- %.2g", what,
          k.name().c_str(), i, value, expected, bound);
  }
}

// The sums over the samples of each row, NaN for rows that no sample has.
inline Results by_row(const Case& k, const Results& by_sample) {
  Results sums(k.rows() * k.c, Bounded(std::numeric_limits<double>::quiet_NaN()));
  for (size_t i = 0; i < by_sample.size(); ++i) {
    Bounded& sum = sums[k.row(i / k.c) * k.c + i % k.c];
    sum = k.first_of_row(i / k.c) ? by_sample[i] : sum + by_sample[i];
  }
  return sums;
}

template <class U>
void check_same(const char* what, const Case& k, const Guarded<U>& a, const Guarded<U>& b) {
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0, "%s of %s depends on the order of the work", what,
        k.name().c_str());
}

// With statistics of each sample, N samples of C channels are one sample of N C channels.
inline Outputs reference_of(const Case& k, Inputs in) {
  if (k.per_sample) in.c *= in.n, in.n = 1;
  return reference::conditional_batch_norm(in);
}

template <class T, class Device>
void check_case(const Device& device, const Case& k) {
  Inputs in = random_inputs<T>(k);
  Outputs want = reference_of(k, in);
  if (!in.linear) {  // nothing but ddy may depend on the sign of an undecided z
    for (size_t i = 0; i < in.dy.size(); ++i) in.dy[i] = undecided<T>(want.z[i]) ? 0 : in.dy[i];
    want = reference_of(k, in);
  }
  for (Results* sums : {&want.dgain, &want.dbias, &want.second_dgain}) *sums = by_row(k, *sums);
  Arrays<T> got(k, in), reversed(k, in);
  device.run(reversed, true);
  device.run(got, false);
#define CHECK_PIXELS(name, ...) \
  check_close<T>(#name, k, *got.name, want.name, true, ##__VA_ARGS__), check_same(#name, k, *got.name, *reversed.name)
#define CHECK_PLANES(name) \
  check_close<T>(#name, k, *got.name, want.name, false), check_same(#name, k, *got.name, *reversed.name)
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

// The orders in parts, with the middle steps between them done here, as the ranks of a group do them.
template <class T, class Device>
void check_parts(const Device& device, const Case& k) {
  using A = AccumulatorOf<T>;
  Inputs in = random_inputs<T>(k);
  Outputs want = reference::conditional_batch_norm(in);
  for (size_t i = 0; i < in.dy.size(); ++i) in.dy[i] = undecided<T>(want.z[i]) ? 0 : in.dy[i];
  want = reference::conditional_batch_norm(in);
  Arrays<T> got(k, in);
  const double m = static_cast<double>(k.n * k.l);
  const auto rstd = [&](size_t c) { return 1 / std::sqrt(static_cast<double>((*got.var)[c]) + in.eps); };

  Guarded<double> mean(k.c), var(k.c);
  device.statistics(got, mean.data(), var.data());
  for (size_t c = 0; c < k.c; ++c) {
    (*got.mean)[c] = static_cast<A>(mean[c]);
    (*got.var)[c] = static_cast<A>(var[c]);
  }
  check_close<T>("mean in parts", k, *got.mean, want.mean, false);
  check_close<T>("var in parts", k, *got.var, want.var, false);

  Guarded<A> sums(k.rows() * k.c * 2), terms(k.c * 2);
  device.backward_sums(got, sums.data());
  for (size_t c = 0; c < k.c; ++c) {
    double g = 0, gx = 0;
    for (size_t n = 0; n < k.n; ++n) {
      if (!k.first_of_row(n)) continue;
      g += in.gain[n * k.c + c] * sums[(k.row(n) * k.c + c) * 2];
      gx += in.gain[n * k.c + c] * sums[(k.row(n) * k.c + c) * 2 + 1];
    }
    const cbn::BackwardTerms<double> of = cbn::backward_terms(rstd(c), g / m, gx / m);
    terms[c] = static_cast<A>(of.of_x), terms[k.c + c] = static_cast<A>(of.of_1);
  }
  device.backward_apply(got, terms.data());
  check_close<T>("dx in parts", k, *got.dx, want.dx, true);

  Guarded<A> second_sums(k.rows() * k.c * 5), second_terms(k.c * 5);
  device.backward_backward_sums(got, second_sums.data());
  for (size_t c = 0; c < k.c; ++c) {
    cbn::ChannelMeans<double> means;
    for (size_t n = 0; n < k.n; ++n) {
      if (!k.first_of_row(n)) continue;
      const size_t plane = n * k.c + c;
      const A* s = &second_sums[(k.row(n) * k.c + c) * 5];
      const double gain = in.gain[plane] / m, ddgain = in.ddgain[plane] / m, r = rstd(c);
      means.g += gain * s[0], means.gx += gain * r * s[1];
      means.a += s[2] / m, means.ax += r * s[3] / m;
      means.ag += gain * s[4];
      means.p += ddgain * s[0], means.px += ddgain * r * s[1];
    }
    const cbn::ChannelTerms<double> of = cbn::channel_terms(rstd(c), means);
    const double row[] = {of.of_ddx, of.of_x, of.of_1, means.a, means.ax};
    for (size_t i = 0; i < 5; ++i) second_terms[i * k.c + c] = static_cast<A>(row[i]);
  }
  device.backward_backward_apply(got, second_terms.data());
  check_close<T>("ddy in parts", k, *got.ddy, want.ddy, true, &want.z);
  check_close<T>("second dx in parts", k, *got.second_dx, want.second_dx, true);
  CHECK(got.intact() && mean.intact() && var.intact() && sums.intact() && terms.intact() && second_sums.intact() &&
            second_terms.intact(),
        "%s", k.name().c_str());
}

template <class T, class Device>
void check_parts(const Device& device) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    check_parts<T>(device, {3, 33, 21, layout, Activation::kRelu, true, 0});
    check_parts<T>(device, {2, 8, 4100, layout, Activation::kLeakyRelu, true, 0});  // several partial results a sample
    check_parts<T>(device, {6, 33, 21, layout, Activation::kRelu, true, 0, 5});
  }
}

// Gain and bias by class: all samples of one; several of some and none of others; as many classes as samples.
template <class T, class Device>
void check_classes(const Device& device) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (bool batch_statistics : {true, false}) {
      check_case<T>(device, {3, 5, 7, layout, Activation::kRelu, batch_statistics, 0, 1});
      check_case<T>(device, {6, 33, 16, layout, Activation::kLeakyRelu, batch_statistics, 0, 5});
      check_case<T>(device, {40, 8, 4, layout, Activation::kNone, batch_statistics, 0, 40});
    }
    check_case<T>(device, {3, 8, 4100, layout, Activation::kRelu, true, 0, 2});  // several partial results a sample
  }
}

// Statistics of each sample: channels that are no vector, some vectors and neither; several partial results a sample.
template <class T, class Device>
void check_samples(const Device& device) {
  struct Shape {
    size_t n, c, l, misalignment;
  };
  for (const Shape& s : {Shape{1, 3, 5, 0}, {3, 1, 7, 0}, {2, 16, 16, 0}, {5, 33, 21, 1}, {3, 8, 4100, 0}}) {
    for (Activation activation : {Activation::kNone, Activation::kLeakyRelu}) {
      check_case<T>(device, {s.n, s.c, s.l, Layout::kChannelsLast, activation, true, s.misalignment, 0, true});
    }
  }
}

// One bad pixel spoils its channel where it enters the statistics, itself where it does not, and nothing else.
template <class T, class Device>
void check_special_values(const Device& device, size_t c = 3, size_t l = 50) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (double special : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      for (bool batch_statistics : {true, false}) {
        const Case k = {2, c, l, layout, Activation::kRelu, batch_statistics, 0};
        const size_t bad = l + 20;  // in channel 1 of sample 0
        Inputs in = random_inputs<T>(k);
        in.gain[1] = 1;
        in.x[bad] = special;
        Arrays<T> got(k, in);
        device.run(got, false);
        for (size_t i = 0; i < in.x.size(); ++i) {
          const bool spoiled = batch_statistics ? i / k.l % k.c == 1 : i == bad;
          const double y = static_cast<double>((*got.y)[k.place(i)]);
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
template <class T, class Device>
void check_far_from_zero(const Device& device) {
  if (sizeof(T) < sizeof(float)) return;
  const Case cases[] = {{4, 4, 1000, Layout::kContiguous, Activation::kNone, true, 0},
                        {4, 4, 1000, Layout::kChannelsLast, Activation::kNone, true, 0},
                        {4, 4, 1000, Layout::kChannelsLast, Activation::kNone, true, 0, 0, true}};
  for (const Case& k : cases) {
    Inputs in = random_inputs<T>(k, 1e4);
    // The second half of the samples lies on the other side of zero: far from the first value of the batch.
    for (size_t i = in.x.size() / 2; k.per_sample && i < in.x.size(); ++i) in.x[i] *= -1;
    const Outputs want = reference_of(k, in);
    Arrays<T> got(k, in);
    device.run(got, false);
    for (size_t c = 0; c < k.statistics(); ++c) {
      const double error = static_cast<double>((*got.var)[c] / want.var[c].value - 1);
      CHECK(std::fabs(error) <= 1e4 * kUnitRoundoff<T>, "var of %s: relative error %g", k.name().c_str(), error);
    }
  }
}

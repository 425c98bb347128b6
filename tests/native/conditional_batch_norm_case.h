// One case of the tests of conditional batch normalisation, on whatever device: its inputs, and the guarded arrays that
// a device works on.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/conditional_batch_norm.h"
#include "check.h"
#include "conditional_batch_norm_reference.h"
#include "cuda_shim/guarded.h"
#include "dtypes.h"

using namespace gankernels;
namespace cbn = conditional_batch_norm;
using cuda_shim::Guarded;
using reference::Inputs;
using reference::Numbers;

struct Case {
  size_t n, c, l;
  Layout layout;
  Activation activation;
  bool batch_statistics;
  size_t misalignment;  // of the pixels, in elements
  size_t classes = 0;   // rows of gain and bias, with labels; 0: without
  bool per_sample = false;

  size_t statistics() const { return per_sample ? n * c : c; }
  size_t rows() const { return classes ? classes : n; }
  // Some classes have several samples, others none.
  size_t row(size_t sample) const { return classes ? (sample * sample + 1) % classes : sample; }
  bool first_of_row(size_t sample) const {
    for (size_t i = 0; i < sample; ++i)
      if (row(i) == row(sample)) return false;
    return true;
  }
  std::string name() const {
    char text[160];
    const char* statistics = per_sample ? "sample" : batch_statistics ? "batch" : "frozen";
    std::snprintf(text, sizeof text, "[%zu, %zu, %zu] %s activation %d %s statistics, misaligned by %zu, %zu classes",
                  n, c, l, layout == Layout::kContiguous ? "contiguous" : "channels_last", static_cast<int>(activation),
                  statistics, misalignment, classes);
    return text;
  }
  size_t place(size_t pixel) const {  // in memory, of a pixel of [N, C, L]
    if (layout == Layout::kContiguous) return pixel;
    return (pixel / (c * l) * l + pixel % l) * c + pixel / l % c;
  }
};

template <class T>
Numbers random_numbers(std::mt19937& bits, size_t size, double mean, double deviation) {
  Numbers numbers(size);
  for (double& number : numbers) {
    double sum = -6;  // of twelve uniform numbers: close to normal, and the same with every standard library
    for (int i = 0; i < 12; ++i) sum += bits() * 0x1p-32;
    number = static_cast<double>(static_cast<T>(static_cast<AccumulatorOf<T>>(mean + deviation * sum)));
  }
  return numbers;
}

template <class T>
Inputs random_inputs(const Case& k, double mean = 0.5) {
  using A = AccumulatorOf<T>;
  std::mt19937 bits(static_cast<unsigned>(k.n * 1000003 + k.c * 1009 + k.l));
  const size_t planes = k.n * k.c, pixels = planes * k.l;
  Inputs in = {};
  in.n = k.n, in.c = k.c, in.l = k.l;
  in.batch_statistics = k.batch_statistics;
  in.linear = k.activation == Activation::kNone;
  in.slope = k.activation == Activation::kLeakyRelu ? 0.25 : 0;
  in.eps = 0x1p-16;
  for (Numbers* pictures : {&in.x, &in.dy, &in.ddx}) *pictures = random_numbers<T>(bits, pixels, mean, 1);
  for (Numbers* plane : {&in.gain, &in.bias, &in.ddgain, &in.ddbias}) {
    *plane = random_numbers<A>(bits, planes, 0.5, 1);
    for (size_t n = k.n; n-- > 0;) {
      for (size_t other = n + 1; other < k.n; ++other)
        if (k.row(other) == k.row(n)) std::copy_n(plane->begin() + n * k.c, k.c, plane->begin() + other * k.c);
    }
  }
  in.mean = random_numbers<A>(bits, k.c, mean, 0.1);
  in.var = random_numbers<A>(bits, k.c, 1, 0.05);
  return in;
}

// What the passes read and write, the outputs filled with NaN.
template <class T>
class Arrays {
 public:
  using A = AccumulatorOf<T>;

  Arrays(const Case& k, const Inputs& in)
      : k_(k),
        x(pixels()),
        dy(pixels()),
        ddx(pixels()),
        y(pixels()),
        dx(pixels()),
        ddy(pixels()),
        second_dx(pixels()),
        gain(planes()),
        bias(planes()),
        ddgain(planes()),
        ddbias(planes()),
        dgain(planes()),
        dbias(planes()),
        second_dgain(planes()),
        mean(channels()),
        var(channels()) {
    problem_ = {static_cast<int64_t>(k.n),
                static_cast<int64_t>(k.c),
                static_cast<int64_t>(k.l),
                k.layout,
                kDType<T>,
                k.activation,
                in.slope,
                in.eps,
                k.batch_statistics};
    if (k.classes) {
      for (size_t n = 0; n < k.n; ++n) labels_.push_back(k.row(n)), order_.push_back(n);
      std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return labels_[a] < labels_[b]; });
      problem_.labels = labels_.data(), problem_.order = order_.data();
      problem_.classes = static_cast<int64_t>(k.classes);
    }
    problem_.per_sample = k.per_sample;
    for (auto [to, from] : {std::pair{&x, &in.x}, {&dy, &in.dy}, {&ddx, &in.ddx}}) {
      for (size_t i = 0; i < from->size(); ++i) (**to)[k.place(i)] = static_cast<T>(static_cast<A>((*from)[i]));
    }
    for (auto [to, from] :
         {std::pair{&gain, &in.gain}, {&bias, &in.bias}, {&ddgain, &in.ddgain}, {&ddbias, &in.ddbias}}) {
      for (size_t i = 0; i < from->size(); ++i) (**to)[k.row(i / k.c) * k.c + i % k.c] = static_cast<A>((*from)[i]);
    }
    if (k.batch_statistics) return;
    for (auto [to, from] : {std::pair{&mean, &in.mean}, {&var, &in.var}}) {
      for (size_t i = 0; i < from->size(); ++i) (**to)[i] = static_cast<A>((*from)[i]);
    }
  }

  std::string name() const { return k_.name(); }
  void set_label(size_t sample, int64_t label) { labels_[sample] = label; }
  const cbn::Problem& problem() const { return problem_; }
  cbn::Forward forward() const {
    return {problem_, x->data(), gain->data(), bias->data(), mean->data(), var->data(), y->data()};
  }
  cbn::Backward backward() const {
    return {problem_,     dy->data(),  x->data(),  gain->data(),  bias->data(),
            mean->data(), var->data(), dx->data(), dgain->data(), dbias->data()};
  }
  cbn::BackwardBackward backward_backward() const {
    return {problem_,    ddx->data(),       ddgain->data(),      ddbias->data(), dy->data(),
            x->data(),   gain->data(),      bias->data(),        mean->data(),   var->data(),
            ddy->data(), second_dx->data(), second_dgain->data()};
  }

  // Whether nothing beside the arrays was written.
  bool intact() const {
    for (auto* a : {&x, &dy, &ddx, &y, &dx, &ddy, &second_dx})
      if (!(*a)->intact()) return false;
    for (auto* a : {&gain, &bias, &ddgain, &ddbias, &dgain, &dbias, &second_dgain, &mean, &var})
      if (!(*a)->intact()) return false;
    return true;
  }

 private:
  using Pixels = std::unique_ptr<Guarded<T>>;
  using Planes = std::unique_ptr<Guarded<A>>;

  Pixels pixels() const { return std::make_unique<Guarded<T>>(k_.n * k_.c * k_.l, k_.misalignment); }
  Planes planes() const { return std::make_unique<Guarded<A>>(k_.rows() * k_.c); }
  Planes channels() const { return std::make_unique<Guarded<A>>(k_.statistics()); }

  Case k_;
  cbn::Problem problem_;
  std::vector<int64_t> labels_, order_;

 public:
  Pixels x, dy, ddx, y, dx, ddy, second_dx;
  Planes gain, bias, ddgain, ddbias, dgain, dbias, second_dgain, mean, var;
};

// The CPU kernels of conditional batch normalisation, one instruction set a run.
// Usage: test_conditional_batch_norm_cpu baseline|wide|avx2|avx512
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "../../csrc/cpu/conditional_batch_norm.h"
#include "conditional_batch_norm_checks.h"
#include "cpu_builds.h"

namespace gankernels::conditional_batch_norm::cpu::wide {
extern const Table table;
}

namespace {

namespace cpu = cbn::cpu;

// Calls work(begin, end) for ranges that make up [0, size).
template <class Work>
void in_one(int64_t size, Work&& work) {
  if (size > 0) work(int64_t(0), size);
}
// Of one, two, three, ... from the end, as if late threads came first.
template <class Work>
void in_pieces(int64_t size, Work&& work) {
  for (int64_t length = 1; size > 0; size -= std::min(size, length++)) work(std::max<int64_t>(size - length, 0), size);
}

// What csrc/torch hands to the passes: the batch, or its samples one by one.
template <class Args>
std::vector<Args> problems_of(const Args& batch) {
  if (!batch.problem.per_sample) return {batch};
  std::vector<Args> samples;
  for (int64_t n = 0; n < batch.problem.n; ++n) samples.push_back(cpu::sample_of(batch, n));
  return samples;
}

// A table's passes in the order in which csrc/torch calls them.
class Cpu {
 public:
  explicit Cpu(const cpu::Table& table) : table_(table) {}

  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    using A = AccumulatorOf<T>;
    run_forward(arrays, reversed);
    const cpu::Passes& pass = passes(arrays.problem());
    for (const cbn::Backward& first : problems_of(arrays.backward())) {
      run_order<A, A>(
          first.problem, arrays.name(), 1, reversed, true,
          [&](auto... partial) { pass.backward_sums(first, partial...); },
          [&](auto... partial_and_terms) { pass.backward_terms(first, partial_and_terms...); },
          [&](auto... terms) { pass.backward(first, terms...); });
    }
    for (const cbn::BackwardBackward& second : problems_of(arrays.backward_backward())) {
      run_order<A, A>(
          second.problem, arrays.name(), 2, reversed, true,
          [&](auto... partial) { pass.backward_backward_sums(second, partial...); },
          [&](auto... partial_and_terms) { pass.backward_backward_terms(second, partial_and_terms...); },
          [&](auto... terms) { pass.backward_backward(second, terms...); });
    }
    CHECK(arrays.intact(), "%s", arrays.name().c_str());
  }

  template <class T>
  void run_forward(Arrays<T>& arrays, bool reversed) const {
    const cpu::Passes& pass = passes(arrays.problem());
    for (const cbn::Forward& args : problems_of(arrays.forward())) {
      run_order<double, double>(
          args.problem, arrays.name(), 0, reversed, args.problem.batch_statistics,
          [&](void* partial, int64_t begin, int64_t end) { pass.statistics(args, partial, begin, end); },
          [&](void* partial, void*, int64_t begin, int64_t end) { pass.merge_statistics(args, partial, begin, end); },
          [&](void*, int64_t begin, int64_t end) { pass.forward(args, begin, end); });
    }
    CHECK(arrays.intact(), "%s", arrays.name().c_str());
  }

  template <class T>
  void statistics(Arrays<T>& arrays, double* mean, double* var) const {
    const cpu::Passes& pass = passes(arrays.problem());
    cbn::Forward args = arrays.forward();
    args.mean = mean, args.var = var;
    in_parts<double>(
        arrays, 0, [&](void* partial, int64_t tiles) { pass.statistics(args, partial, 0, tiles); },
        [&](void* partial, int64_t c) { pass.merge_statistics_in_double(args, partial, 0, c); });
  }
  template <class T, class A>
  void backward_sums(Arrays<T>& arrays, A* sums) const {
    const cpu::Passes& pass = passes(arrays.problem());
    const cbn::Backward args = arrays.backward();
    in_parts<A>(
        arrays, 1, [&](void* partial, int64_t tiles) { pass.backward_sums(args, partial, 0, tiles); },
        [&](void* partial, int64_t c) { pass.backward_fold(args.problem, partial, sums, 0, c); });
  }
  template <class T, class A>
  void backward_apply(Arrays<T>& arrays, const A* terms) const {
    passes(arrays.problem()).backward(arrays.backward(), terms, 0, cpu::tiling(arrays.problem()).tiles);
  }
  template <class T, class A>
  void backward_backward_sums(Arrays<T>& arrays, A* sums) const {
    const cpu::Passes& pass = passes(arrays.problem());
    const cbn::BackwardBackward args = arrays.backward_backward();
    in_parts<A>(
        arrays, 2, [&](void* partial, int64_t tiles) { pass.backward_backward_sums(args, partial, 0, tiles); },
        [&](void* partial, int64_t c) { pass.backward_backward_fold(args.problem, partial, sums, 0, c); });
  }
  template <class T, class A>
  void backward_backward_apply(Arrays<T>& arrays, const A* terms) const {
    passes(arrays.problem())
        .backward_backward(arrays.backward_backward(), terms, 0, cpu::tiling(arrays.problem()).tiles);
  }

 private:
  template <class Partial, class T, class Sums, class Fold>
  static void in_parts(const Arrays<T>& arrays, int order, Sums&& sums, Fold&& fold) {
    const cbn::Problem& p = arrays.problem();
    const cpu::Tiling t = cpu::tiling(p);
    Guarded<Partial> partial(cpu::kPartials[order] * t.slots * p.c);
    sums(partial.data(), t.tiles);
    fold(partial.data(), p.c);
    CHECK(partial.intact(), "%s, order %d", arrays.name().c_str(), order);
  }

  const cpu::Passes& passes(const cbn::Problem& p) const {
    return table_[static_cast<int>(p.dtype)][static_cast<int>(p.activation)];
  }

  // Not reversed, contiguous: some channels through all passes, then the next. Otherwise: pass by pass.
  template <class Partial, class Term, class Sums, class Terms, class Apply>
  static void run_order(const cbn::Problem& p, const std::string& name, int order, bool reversed, bool with_sums,
                        Sums&& sums, Terms&& terms, Apply&& apply) {
    const cpu::Tiling t = cpu::tiling(p);
    Guarded<Partial> partial(cpu::kPartials[order] * t.slots * p.c);
    Guarded<Term> term(cpu::kTerms[order] * p.c);
    const auto sum = [&](int64_t begin, int64_t end) { sums(partial.data(), begin, end); };
    const auto fold = [&](int64_t begin, int64_t end) { terms(partial.data(), term.data(), begin, end); };
    const auto finish = [&](int64_t begin, int64_t end) { apply(term.data(), begin, end); };
    if (reversed) {
      if (with_sums) in_pieces(t.tiles, sum), in_pieces(p.c, fold);
      in_pieces(t.tiles, finish);
    } else if (t.per_channel > 0) {
      in_pieces(p.c, [&](int64_t begin, int64_t end) {
        if (with_sums) sum(begin * t.per_channel, end * t.per_channel), fold(begin, end);
        finish(begin * t.per_channel, end * t.per_channel);
      });
    } else {
      if (with_sums) in_one(t.tiles, sum), in_one(p.c, fold);
      in_one(t.tiles, finish);
    }
    CHECK(partial.intact() && term.intact(), "%s, order %d", name.c_str(), order);
  }

  const cpu::Table& table_;
};

template <class T>
void check_shapes(const Cpu& device) {
  struct Shape {
    size_t n, c, l, misalignment;
  };
  // 1; one pixel; one sample; channels that are no vector, some vectors, and neither.
  const Shape shapes[] = {{1, 1, 1, 0},   {2, 3, 1, 0},   {1, 1, 7, 0},   {3, 1, 33, 1},  {2, 3, 35, 0},
                          {2, 16, 16, 0}, {2, 16, 16, 1}, {5, 8, 48, 0},  {33, 40, 4, 0}, {2, 33, 21, 0},
                          {1, 5, 300, 0}, {2, 192, 5, 1}, {1, 192, 1, 0}, {1, 1001, 1, 0}};
  for (const Shape& s : shapes) {
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      for (Activation activation : {Activation::kNone, Activation::kRelu, Activation::kLeakyRelu}) {
        for (bool batch_statistics : {true, false}) {
          check_case<T>(device, {s.n, s.c, s.l, layout, activation, batch_statistics, s.misalignment});
        }
      }
    }
  }
  // Past the 128 KiB of a tile in channels_last, whose last tile is shorter.
  const size_t rows = 8 * 501 / sizeof(T) + 1;
  for (const Shape& s : {Shape{2, 33, rows, 0}, {1, 1001, rows / 5, 0}, {1, 1, rows * 40, 0}, {1, 192, rows / 4, 1}}) {
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      check_case<T>(device, {s.n, s.c, s.l, layout, Activation::kRelu, true, s.misalignment});
    }
  }
}

// The mean of nothing is NaN; csrc/torch calls no backward of nothing.
template <class T>
void check_empty(const Cpu& device) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    for (auto [n, c, l] : {std::array<size_t, 3>{0, 3, 4}, {2, 0, 4}, {2, 3, 0}, {0, 0, 0}}) {
      for (bool reversed : {false, true}) {
        const Case k = {n, c, l, layout, Activation::kRelu, true, 0};
        Arrays<T> got(k, random_inputs<T>(k));
        device.run_forward(got, reversed);
        for (size_t i = 0; i < c; ++i) {
          CHECK(std::isnan((*got.mean)[i]) && std::isnan((*got.var)[i]), "%s", k.name().c_str());
        }
      }
    }
  }
}

// Every half-precision number is loaded as what it is, and what comes of it is rounded to nearest even, also where that
// is subnormal, halfway between two numbers, or too large. In vectors (one plane) and one by one (as many samples).
template <class T>
void check_conversions(const Cpu& device) {
  constexpr size_t kNumbers = 1 << 16;
  for (bool vectors : {true, false}) {
    for (float gain : {1.0f, 1.5f, 1 / 3.0f, 0x1.8p-11f}) {
      const Case k = {
          vectors ? 1 : kNumbers, 1, vectors ? kNumbers : 1, Layout::kContiguous, Activation::kNone, false, 0};
      Inputs in = {};
      in.n = k.n, in.c = k.c, in.l = k.l;
      in.gain.assign(k.n, gain), in.bias.assign(k.n, 0);
      in.mean = {0}, in.var = {1};  // and eps is 0, so that y = gain * x
      Arrays<T> got(k, in);
      for (size_t i = 0; i < kNumbers; ++i) (*got.x)[i].bits = static_cast<uint16_t>(i);
      device.run_forward(got, false);
      for (size_t i = 0; i < kNumbers; ++i) {
        const float x = (*got.x)[i], y = (*got.y)[i], expected = T(x * gain);
        CHECK(y == expected || (std::isnan(y) && std::isnan(expected)), "%s: %g times %g: got %g, expected %g",
              k.name().c_str(), x, gain, y, expected);
      }
    }
  }
}

template <class T>
void check_all(const Cpu& device) {
  check_shapes<T>(device);
  check_empty<T>(device);
  check_parts<T>(device);
  check_classes<T>(device);
  check_samples<T>(device);
  check_special_values<T>(device);
  check_far_from_zero<T>(device);
  if constexpr (sizeof(T) == 2) check_conversions<T>(device);
}

}  // namespace

int main(int count, char** arguments) {
  using namespace gankernels::conditional_batch_norm::cpu;
  return check_build<baseline::table, wide::table, avx2::table, avx512::table>(count, arguments, [](const auto& table) {
    const Cpu device(table);
    check_all<float>(device);
    check_all<double>(device);
    check_all<__nv_bfloat16>(device);
    check_all<__half>(device);
  });
}

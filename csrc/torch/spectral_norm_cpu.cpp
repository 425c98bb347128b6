// Spectral normalisation on the CPU: the passes of csrc/cpu in their order, spread over at::parallel_for. Weight by
// weight, so that one that fits into a cache stays there between its passes.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../cpu/spectral_norm.h"
#include "spectral_norm.h"

namespace gankernels::spectral_norm {
namespace {

// Numbers of W below which a weight is left to one thread, next to other weights on other threads.
constexpr int64_t kShared = 1 << 18;

// Numbers of W that one thread takes in one go; what it sums is a partial result of its own. A constant, so that sums
// are added in the same order with every number of threads; large, since each partial result is as long as a run.
constexpr int64_t kBand = 1 << 19;

// Numbers below which a thread is not worth waking, as ATen's own kernels have it.
constexpr int64_t kGrain = 32768;

template <class A>
using Array = std::unique_ptr<A[]>;
template <class A>
Array<A> array(int64_t size) {
  return Array<A>(new A[size]);  // not cleared
}

// Calls work(layer) for all of them.
template <class Layer, class Work>
void each_layer(const std::vector<Layer>& layers, Work&& work) {
  std::vector<const Layer*> small;
  std::vector<int64_t> begins;  // each one's place if they lay one behind the other, the last one's end included
  int64_t numbers = 0;
  for (const Layer& layer : layers) {
    if (layer.matrix.size() < kShared) {
      small.push_back(&layer);
      begins.push_back(numbers);
      numbers += std::max<int64_t>(layer.matrix.size(), 1);
    }
  }
  // A thread takes those that begin in its share of the numbers.
  at::parallel_for(0, numbers, kGrain, [&](int64_t begin, int64_t end) {
    const auto first = std::lower_bound(begins.begin(), begins.end(), begin) - begins.begin(),
               last = std::lower_bound(begins.begin(), begins.end(), end) - begins.begin();
    for (auto i = first; i < last; ++i) work(*small[i]);
  });
  for (const Layer& layer : layers) {
    if (layer.matrix.size() >= kShared) work(layer);
  }
}

// How the runs of a matrix are cut into bands.
struct Bands {
  int64_t runs, count;

  explicit Bands(const Matrix& m)
      : runs(std::max<int64_t>(kBand / std::max<int64_t>(m.columns, 1) / 4 * 4, 1)),
        count((m.rows + runs - 1) / runs) {}

  // Calls work(band, first run, last run), in parallel.
  template <class Work>
  void each(const Matrix& m, Work&& work) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t band = begin; band < end; ++band) work(band, band * runs, std::min((band + 1) * runs, m.rows));
    });
  }
};

template <class A>
double norm(const A* x, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double(x[i]) * x[i];
  return std::sqrt(sum);
}

// u and v of a weight, as they meet its runs in memory.
template <class A>
struct Vectors {
  Array<A> along, across;

  explicit Vectors(const Matrix& m) : along(array<A>(m.columns)), across(array<A>(m.across())) {}
  Vectors(const Matrix& m, const void* u, const void* v) : Vectors(m) {
    set_along(m, m.transposed ? u : v);
    set_across(m, m.transposed ? v : u);
  }

  void set_along(const Matrix& m, const void* from) {
    for (int64_t c = 0; c < m.columns; ++c) along[c] = static_cast<const A*>(from)[m.of_along(c)];
  }
  void set_across(const Matrix& m, const void* from) {
    if (m.across() > 0) std::memcpy(across.get(), from, m.across() * sizeof(A));
  }
  void get(const Matrix& m, void* u, void* v) const {
    A *to_along = static_cast<A*>(m.transposed ? u : v), *to_across = static_cast<A*>(m.transposed ? v : u);
    for (int64_t c = 0; c < m.columns; ++c) to_along[m.of_along(c)] = along[c];
    if (m.across() > 0) std::memcpy(to_across, across.get(), m.across() * sizeof(A));
  }

  // across /= max(|across|, eps); returns |across|.
  double normalize_across(const Matrix& m, double eps) {
    const double size = norm(across.get(), m.across());
    const A divisor = A(at_least(size, eps));
    for (int64_t i = 0; i < m.across(); ++i) across[i] /= divisor;
    return size;
  }

  // along = the sum of all bands, divided by `divisor`; where transposed, neighbours that are one element of u are
  // added up, too. Returns |along|, of which that element counts once.
  double sum_along(const Matrix& m, const A* bands, int64_t count, double divisor) {
    const A* const end = bands + count * m.columns;
    at::parallel_for(0, m.columns, at::divup(kGrain, std::max<int64_t>(count, 1)), [&](int64_t first, int64_t last) {
      std::fill(along.get() + first, along.get() + last, A(0));
      for (const A* band = bands; band < end; band += m.columns)
        for (int64_t c = first; c < last; ++c) along[c] += band[c];
      for (int64_t c = first; c < last; ++c) along[c] /= A(divisor);
    });
    double squares = 0;
    for (int64_t c = 0; c < m.columns; c += m.inner) {
      A sum = along[c];
      for (int64_t k = 1; k < m.inner; ++k) sum += along[c + k];
      for (int64_t k = 0; k < m.inner; ++k) along[c + k] = sum;
      squares += double(sum) * sum;
    }
    return std::sqrt(squares);
  }
  void divide_along(const Matrix& m, double divisor) {
    for (int64_t c = 0; c < m.columns; ++c) along[c] /= A(divisor);
  }
};

template <class A>
void forward(const cpu::Passes& pass, const Options& options, const Forward& layer) {
  const Matrix& m = layer.matrix;
  const Bands bands(m);
  Vectors<A> x(m, layer.u0, layer.v0);
  double sigma = 0;
  const auto across = [&](A* to) {
    bands.each(m, [&](int64_t, int64_t begin, int64_t end) { pass.across(m, layer.w, x.along.get(), to, begin, end); });
  };
  if (options.iterations == 0) {
    const Array<A> product = array<A>(m.across());
    across(product.get());
    for (int64_t i = 0; i < m.across(); ++i) sigma += double(product[i]) * x.across[i];
  } else {
    const Array<A> sums = array<A>(bands.count * m.columns);
    for (int64_t i = 0; i < options.iterations; ++i) {
      double last;
      if (m.transposed) {  // u = W v along, from every run; then v = W^T u across
        bands.each(m, [&](int64_t band, int64_t begin, int64_t end) {
          pass.along(m, layer.w, x.across.get(), sums.get() + band * m.columns, begin, end);
        });
        x.divide_along(m, at_least(x.sum_along(m, sums.get(), bands.count, 1), options.eps));
        across(x.across.get());
        last = x.normalize_across(m, options.eps);
      } else {  // both in one pass over W
        bands.each(m, [&](int64_t band, int64_t begin, int64_t end) {
          pass.iterate(m, layer.w, x.along.get(), x.across.get(), sums.get() + band * m.columns, begin, end);
        });
        const double first = x.normalize_across(m, options.eps);
        last = x.sum_along(m, sums.get(), bands.count, at_least(first, options.eps));
        x.divide_along(m, at_least(last, options.eps));
      }
      sigma = sigma_of(last, options.eps);
    }
  }
  *static_cast<A*>(layer.sigma) = A(sigma);
  x.get(m, layer.u, layer.v);
  at::parallel_for(0, m.size(), kGrain, [&](int64_t begin, int64_t end) {
    pass.scale(layer.w, A(sigma), cpu::is_large(m), layer.y, begin, end);
  });
}

// The sum over the bands, in their order.
template <class Each>
cpu::Products sum(const Bands& bands, const Matrix& m, Each&& each) {
  std::vector<cpu::Products> parts(bands.count);
  bands.each(m, [&](int64_t band, int64_t begin, int64_t end) { parts[band] = each(begin, end); });
  cpu::Products total;
  for (const cpu::Products& part : parts) {
    total.a_dy += part.a_dy, total.a_uv += part.a_uv, total.dy_w += part.dy_w;
  }
  return total;
}

template <class A>
void backward(const cpu::Passes& pass, const Options&, const Backward& layer) {
  const Matrix& m = layer.matrix;
  const Bands bands(m);
  const Vectors<A> x(m, layer.u, layer.v);
  const auto products = sum(bands, m, [&](int64_t begin, int64_t end) {
    return pass.backward_sums(layer.dy, layer.w, begin * m.columns, end * m.columns);
  });
  const auto terms = backward_terms<double>(*static_cast<const A*>(layer.sigma), products.dy_w);
  bands.each(m, [&](int64_t, int64_t begin, int64_t end) {
    pass.backward(m, terms, layer.dy, x.along.get(), x.across.get(), layer.dw, begin, end);
  });
}

template <class A>
void backward(const cpu::Passes& pass, const Options&, const BackwardBackward& layer) {
  const Matrix& m = layer.matrix;
  const Bands bands(m);
  const Vectors<A> x(m, layer.u, layer.v);
  const auto products = sum(bands, m, [&](int64_t begin, int64_t end) {
    return pass.backward_backward_sums(m, layer.a, layer.dy, layer.w, x.along.get(), x.across.get(), begin, end);
  });
  const auto terms =
      backward_backward_terms<double>(*static_cast<const A*>(layer.sigma), products.dy_w, products.a_uv, products.a_dy);
  bands.each(m, [&](int64_t, int64_t begin, int64_t end) {
    pass.backward_backward(m, terms, layer.a, layer.dy, layer.w, x.along.get(), x.across.get(), layer.ddy, layer.dw,
                           begin, end);
  });
}

}  // namespace

void launch_cpu(const Options& options, const std::vector<Forward>& layers) {
  const cpu::Passes& pass = cpu::passes(options.weight, options.output);
  each_layer(layers, [&](const Forward& layer) {
    options.weight == DType::kFloat64 ? forward<double>(pass, options, layer) : forward<float>(pass, options, layer);
  });
}

void launch_cpu(const Options& options, const std::vector<Backward>& layers) {
  const cpu::Passes& pass = cpu::passes(options.weight, options.output);
  each_layer(layers, [&](const Backward& layer) {
    options.weight == DType::kFloat64 ? backward<double>(pass, options, layer) : backward<float>(pass, options, layer);
  });
}

void launch_cpu(const Options& options, const std::vector<BackwardBackward>& layers) {
  const cpu::Passes& pass = cpu::passes(options.weight, options.output);
  each_layer(layers, [&](const BackwardBackward& layer) {
    options.weight == DType::kFloat64 ? backward<double>(pass, options, layer) : backward<float>(pass, options, layer);
  });
}

}  // namespace gankernels::spectral_norm

// Spectral normalisation, order 0. Every step is one launch for as many weights as a table holds.
#include "spectral_norm_products.cuh"

namespace gankernels::spectral_norm::cuda {
namespace {

// x / max(|x|, eps), and of that |x|^2 / max(|x|, eps). In place but for the order: from memory's to torch's.
template <class A>
struct Normalise {
  const A* x;
  A *out, *sigma;  // sigma may be null
  int64_t size, channels, positions;
  A eps;
  int64_t blocks() const { return 1; }
};

// sum x y
template <class A>
struct Dot {
  const A *x, *y;
  A* out;
  int64_t size;
  int64_t blocks() const { return 1; }
};

template <class A>
struct Copy {
  const A* from;
  A* to;
  int64_t size;
  int64_t blocks() const { return ceil_div<int64_t>(size, kThreads); }
};

template <class A>
struct Scale {
  Matrix m;
  const void* w;
  const A* sigma;
  void* y;
  bool vectors;
  int64_t blocks() const { return spans(m); }
};

}  // namespace

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) normalise_kernel(Table<Normalise<A>> table) {
  GK_SHARED(A, divisor, 1);
  unsigned block;
  const Normalise<A>& args = table.mine(block);
  Sums<A, 1> squares = {};
  for (int64_t i = threadIdx.x; i < args.size; i += kThreads) squares.at[0] += args.x[i] * args.x[i];
  squares = reduce_block(squares);
  if (threadIdx.x == 0) {
    const A norm = std::sqrt(squares.at[0]);
    divisor[0] = at_least(norm, args.eps);
    if (args.sigma != nullptr) args.sigma[0] = sigma_of(norm, args.eps);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < args.size; i += kThreads) {
    args.out[i % args.channels * args.positions + i / args.channels] = args.x[i] / divisor[0];
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) dot_kernel(Table<Dot<A>> table) {
  unsigned block;
  const Dot<A>& args = table.mine(block);
  Sums<A, 1> sum = {};
  for (int64_t i = threadIdx.x; i < args.size; i += kThreads) sum.at[0] += args.x[i] * args.y[i];
  sum = reduce_block(sum);
  if (threadIdx.x == 0) args.out[0] = sum.at[0];
}

template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) copy_kernel(Table<Copy<A>> table) {
  unsigned block;
  const Copy<A>& args = table.mine(block);
  const int64_t i = int64_t(block) * kThreads + threadIdx.x;
  if (i < args.size) args.to[i] = args.from[i];
}

namespace {
template <class T, class Out, int kWidth, class A>
__device__ void scale(const Scale<A>& args, unsigned block) {
  const A sigma = args.sigma[0];
  each_vector<kWidth>(args.m, block, [&](int64_t n) {
    const auto w = load<kWidth>(static_cast<const T*>(args.w) + n);
    Vector<Out, kWidth> y;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y.at[i] = static_cast<Out>(static_cast<A>(w.at[i]) / sigma);
    store(static_cast<Out*>(args.y) + n, y);
  });
}
}  // namespace

// Bytes: the weights in, y out.
template <class T, class Out, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) scale_kernel(Table<Scale<A>> table) {
  unsigned block;
  const Scale<A>& args = table.mine(block);
  args.vectors ? scale<T, Out, kVectorWidth<T>>(args, block) : scale<T, Out, 1>(args, block);
}

namespace {

// Runs all steps; with no workspace, counts its bytes.
template <class T, class Out>
int run(const Options& options, const Forward* layers, int count, Arena arena, void* stream, int64_t* bytes) {
  using A = Accumulator<T>;
  constexpr int kWidth = kVectorWidth<T>;
  Launches launches{stream};
  const A eps = static_cast<A>(options.eps);
  // Rows come first where dim is 0, columns where it is not: two sequences, interleaved by nothing.
  for (bool transposed : {false, true}) {
    std::vector<Across<A>> across;
    std::vector<Along<A>> along;
    std::vector<Fold<A>> fold;
    std::vector<Normalise<A>> of_across, of_along;
    std::vector<Dot<A>> dots;
    std::vector<Copy<A>> copies;
    for (const Forward* l = layers; l < layers + count; ++l) {
      const Matrix& m = l->matrix;
      if (m.transposed != transposed) continue;
      const int64_t width = m.columns / m.inner;
      const bool vectors = in_vectors<kWidth>(m, {l->w});
      A *u = static_cast<A*>(l->u), *v = static_cast<A*>(l->v), *sigma = static_cast<A*>(l->sigma);
      A *to_along = transposed ? u : v, *to_across = transposed ? v : u;
      A *product = arena.take<A>(m.across()), *sum = arena.take<A>(width);
      across.push_back({m, l->w, to_along, product, vectors});
      Along<A> sums = {m, l->w, to_across, nullptr, vectors ? kWidth : 1};
      sums.partial = arena.take<A>(sums.splits() * m.columns);
      along.push_back(sums);
      fold.push_back({sums.partial, sum, width, sums.splits(), m.inner});
      of_across.push_back({product, to_across, transposed ? sigma : nullptr, m.across(), m.across(), 1, eps});
      const int64_t channels = transposed ? width : m.channels, positions = transposed ? 1 : m.positions;
      of_along.push_back({sum, to_along, transposed ? nullptr : sigma, width, channels, positions, eps});
      dots.push_back({product, to_across, sigma, m.across()});
      // With iterations, the side that is computed first needs no start.
      const int64_t height = transposed ? width : m.across(), breadth = transposed ? m.across() : width;
      if (options.iterations == 0) copies.push_back({static_cast<const A*>(l->u0), u, height});
      copies.push_back({static_cast<const A*>(l->v0), v, breadth});
    }
    if (bytes != nullptr) continue;
    launch_all(launches, copy_kernel<A>, copies);
    const auto to_across = [&] { launch_all(launches, across_kernel<T, A>, across); };
    const auto finish_across = [&] { launch_all(launches, normalise_kernel<A>, of_across); };
    const auto to_along = [&] {
      launch_all(launches, along_kernel<T, A>, along);
      launch_all(launches, fold_kernel<A>, fold);
      launch_all(launches, normalise_kernel<A>, of_along);
    };
    for (int64_t i = 0; i < options.iterations; ++i) {
      if (transposed) to_along();
      to_across();
      finish_across();
      if (!transposed) to_along();
    }
    if (options.iterations == 0) {
      to_across();
      launch_all(launches, dot_kernel<A>, dots);
    }
  }
  if (bytes != nullptr) {
    *bytes = arena.used();
    return cudaSuccess;
  }
  std::vector<Scale<A>> scales;
  for (const Forward* l = layers; l < layers + count; ++l) {
    scales.push_back(
        {l->matrix, l->w, static_cast<const A*>(l->sigma), l->y, in_vectors<kWidth>(l->matrix, {l->w, l->y})});
  }
  launch_all(launches, scale_kernel<T, Out, A>, scales);
  return launches.error;
}

}  // namespace

int64_t workspace_bytes(const Options& options, const Forward* layers, int count) {
  int64_t bytes = 0;
  with_types(options, [&](auto t, auto out) {
    return run<decltype(t), decltype(out)>(options, layers, count, Arena(nullptr), nullptr, &bytes);
  });
  return bytes;
}

int launch(const Options& options, const Forward* layers, int count, void* workspace, void* stream) {
  return with_types(options, [&](auto t, auto out) {
    return run<decltype(t), decltype(out)>(options, layers, count, Arena(workspace), stream, nullptr);
  });
}

}  // namespace gankernels::spectral_norm::cuda

// Spectral normalisation, order 0. Every step is one launch for as many weights as a table holds.
#include "spectral_norm.cuh"

namespace gankernels::spectral_norm::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kLongRun = 2048;    // numbers from which a run gets a block, not a warp
constexpr int64_t kRunsOfSplit = 64;  // what a block sums along: its partial result is as long as a run

template <class A>
struct Across {
  Matrix m;
  const void* w;
  const A* along;
  A* out;
  bool vectors;
  int64_t blocks() const {
    if (m.inner > 1) return ceil_div<int64_t>(m.across(), kThreads);
    return m.columns >= kLongRun ? m.rows : ceil_div<int64_t>(m.rows, kWarps);
  }
};

template <class A>
struct Along {
  Matrix m;
  const void* w;
  const A* across;
  A* partial;  // [splits, columns]
  int width;   // numbers of a thread: a vector, or one
  GK_HOST_DEVICE int64_t chunks() const { return ceil_div<int64_t>(m.columns, int64_t(kThreads) * width); }
  int64_t splits() const { return ceil_div(m.rows, kRunsOfSplit); }
  int64_t blocks() const { return chunks() * splits(); }
};

template <class A>
struct Fold {
  const A* partial;  // [splits, inner * size], neighbours of `inner` being one
  A* out;
  int64_t size, splits, inner;
  int64_t blocks() const { return ceil_div<int64_t>(size, kThreads); }
};

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

template <class T, int kWidth, class A>
__device__ A dot_run(const Across<A>& args, int64_t run, int first, int step) {
  const Matrix& m = args.m;
  const T* w = static_cast<const T*>(args.w) + run * m.columns;
  A sums[4] = {};
  for (int64_t c = int64_t(first) * kWidth; c < m.columns; c += int64_t(step) * kWidth * 4) {
    Vector<T, kWidth> batch[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = c + int64_t(k) * step * kWidth;
      if (at < m.columns) batch[k] = load<kWidth>(w + at);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = c + int64_t(k) * step * kWidth;
      if (at >= m.columns) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        sums[k] += static_cast<A>(batch[k].at[i]) * args.along[RankOne<A>::index(m, at + i)];
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

// Bytes: the weights in; [rows * inner] out.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) across_kernel(Table<Across<A>> table) {
  constexpr int kWidth = kVectorWidth<T>;
  unsigned block;
  const Across<A>& args = table.mine(block);
  const Matrix& m = args.m;
  if (m.inner > 1) {  // a thread for each element: neighbours read neighbouring numbers
    const int64_t q = int64_t(block) * kThreads + threadIdx.x;
    if (q >= m.across()) return;
    const T* w = static_cast<const T*>(args.w) + q / m.inner * m.columns + q % m.inner;
    A sum = 0;
    for (int64_t i = 0; i * m.inner < m.columns; ++i) sum += static_cast<A>(w[i * m.inner]) * args.along[i];
    args.out[q] = sum;
    return;
  }
  const bool whole = m.columns >= kLongRun;
  const int64_t run = whole ? int64_t(block) : int64_t(block) * kWarps + threadIdx.x / kWarp;
  const int first = whole ? threadIdx.x : threadIdx.x % kWarp, step = whole ? kThreads : kWarp;
  Sums<A, 1> sum = {};
  if (run < m.rows)
    sum.at[0] = args.vectors ? dot_run<T, kWidth>(args, run, first, step) : dot_run<T, 1>(args, run, first, step);
  sum = whole ? reduce_block(sum) : reduce_lanes(sum, kWarp);
  if (first == 0 && run < m.rows) args.out[run] = sum.at[0];
}

namespace {
template <class T, int kWidth, class A>
__device__ void sum_along(const Along<A>& args, unsigned block) {
  const Matrix& m = args.m;
  const int64_t chunks = args.chunks(), split = block / chunks;
  const int64_t c = (int64_t(block % chunks) * kThreads + threadIdx.x) * kWidth;
  if (c >= m.columns) return;
  const int64_t begin = split * kRunsOfSplit, end = min(begin + kRunsOfSplit, m.rows);
  const T* w = static_cast<const T*>(args.w) + c;
  int residue[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) residue[i] = m.inner == 1 ? 0 : static_cast<int>((c + i) % m.inner);
  A sums[kWidth] = {};
  for (int64_t r = begin; r < end; r += 4) {
    Vector<T, kWidth> batch[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (r + k < end) batch[k] = load<kWidth>(w + (r + k) * m.columns);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (r + k >= end) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        sums[i] += static_cast<A>(batch[k].at[i]) * args.across[(r + k) * m.inner + residue[i]];
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) args.partial[split * m.columns + c + i] = sums[i];
}
}  // namespace

// Bytes: the weights in; [splits, columns] out.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) along_kernel(Table<Along<A>> table) {
  unsigned block;
  const Along<A>& args = table.mine(block);
  args.width > 1 ? sum_along<T, kVectorWidth<T>>(args, block) : sum_along<T, 1>(args, block);
}

// Bytes: [splits, columns] in; [size] out.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) fold_kernel(Table<Fold<A>> table) {
  unsigned block;
  const Fold<A>& args = table.mine(block);
  const int64_t i = int64_t(block) * kThreads + threadIdx.x;
  if (i >= args.size) return;
  A sum = 0;
  for (int64_t k = 0; k < args.splits; ++k)
    for (int64_t b = 0; b < args.inner; ++b) sum += args.partial[(k * args.size + i) * args.inner + b];
  args.out[i] = sum;
}

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
  const int64_t end = min((int64_t(block) + 1) * kSpan, args.m.size());
  for (int64_t n = int64_t(block) * kSpan + threadIdx.x * kWidth; n < end; n += kThreads * kWidth) {
    const auto w = load<kWidth>(static_cast<const T*>(args.w) + n);
    Vector<Out, kWidth> y;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y.at[i] = static_cast<Out>(static_cast<A>(w.at[i]) / sigma);
    store(static_cast<Out*>(args.y) + n, y);
  }
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

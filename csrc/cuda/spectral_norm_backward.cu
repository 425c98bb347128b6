// Spectral normalisation, orders 1 and 2: three launches for as many weights as a table holds.
#include "spectral_norm.cuh"

namespace gankernels::spectral_norm::cuda {
namespace {

// Order 1 has no a and no ddy.
template <class A>
struct Derivative {
  Matrix m;
  const void *a, *dy, *w;
  RankOne<A> uv;
  const A* sigma;
  void *ddy, *dw;
  Sums<A, 3>* partial;  // [spans]: <dy, W>, <a, u v^T>, <a, dy>
  Terms<A>* terms;
  bool vectors;
  int64_t blocks() const { return spans(m); }
};

// The same, with one block for each weight.
template <class A>
struct Finish {
  Derivative<A> of;
  int64_t blocks() const { return 1; }
};

template <class T, class Out, int kOrder, int kWidth, class A>
__device__ Sums<A, 3> products(const Derivative<A>& args, unsigned block) {
  Sums<A, 3> sums = {};
  each_vector<kWidth>(args.m, block, [&](int64_t n) {
    const auto dy = load<kWidth>(static_cast<const Out*>(args.dy) + n);
    const auto w = load<kWidth>(static_cast<const T*>(args.w) + n);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums.at[0] += static_cast<A>(dy.at[i]) * static_cast<A>(w.at[i]);
    if constexpr (kOrder == 2) {
      const auto a = load<kWidth>(static_cast<const T*>(args.a) + n);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sums.at[1] += static_cast<A>(a.at[i]) * args.uv.at(args.m, n + i);
        sums.at[2] += static_cast<A>(a.at[i]) * static_cast<A>(dy.at[i]);
      }
    }
  });
  return sums;
}

template <class T, class Out, int kOrder, int kWidth, class A>
__device__ void apply(const Derivative<A>& args, unsigned block) {
  const Terms<A> terms = args.terms[0];
  each_vector<kWidth>(args.m, block, [&](int64_t n) {
    const auto dy = load<kWidth>(static_cast<const Out*>(args.dy) + n);
    Vector<T, kWidth> dw;
    if constexpr (kOrder == 1) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const A value = static_cast<A>(dy.at[i]) - terms.of_uv * args.uv.at(args.m, n + i);
        dw.at[i] = static_cast<T>(value / terms.sigma);
      }
    } else {
      const auto a = load<kWidth>(static_cast<const T*>(args.a) + n);
      const auto w = load<kWidth>(static_cast<const T*>(args.w) + n);
      Vector<Out, kWidth> ddy;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const A value = terms.of_uv * args.uv.at(args.m, n + i) - terms.of_dy * static_cast<A>(dy.at[i]);
        ddy.at[i] = static_cast<Out>((static_cast<A>(a.at[i]) - terms.of_w * static_cast<A>(w.at[i])) / terms.sigma);
        dw.at[i] = static_cast<T>(value / terms.sigma);
      }
      store(static_cast<Out*>(args.ddy) + n, ddy);
    }
    store(static_cast<T*>(args.dw) + n, dw);
  });
}

}  // namespace

// Bytes: dy and W in, and a for order 2; partial results [spans] out.
template <class T, class Out, int kOrder, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) products_kernel(Table<Derivative<A>> table) {
  unsigned block;
  const Derivative<A>& args = table.mine(block);
  const Sums<A, 3> sums =
      args.vectors ? products<T, Out, kOrder, kVectorWidth<T>>(args, block) : products<T, Out, kOrder, 1>(args, block);
  const Sums<A, 3> total = reduce_block(sums);
  if (threadIdx.x == 0) args.partial[block] = total;
}

template <class A, int kOrder>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) terms_kernel(Table<Finish<A>> table) {
  unsigned block;
  const Derivative<A>& args = table.mine(block).of;
  Sums<A, 3> sums = {};
  for (int64_t i = threadIdx.x; i < spans(args.m); i += kThreads) sums = merge(sums, args.partial[i]);
  sums = reduce_block(sums);
  if (threadIdx.x != 0) return;
  args.terms[0] = kOrder == 1 ? backward_terms(args.sigma[0], sums.at[0])
                              : backward_backward_terms(args.sigma[0], sums.at[0], sums.at[1], sums.at[2]);
}

// Bytes: dy in, dW out; for order 2 also a and W in, ddy out.
template <class T, class Out, int kOrder, class A>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) derivative_kernel(Table<Derivative<A>> table) {
  unsigned block;
  const Derivative<A>& args = table.mine(block);
  args.vectors ? apply<T, Out, kOrder, kVectorWidth<T>>(args, block) : apply<T, Out, kOrder, 1>(args, block);
}

namespace {

const void* a_of(const Backward&) {
  return nullptr;
}
const void* a_of(const BackwardBackward& layer) {
  return layer.a;
}
void* ddy_of(const Backward&) {
  return nullptr;
}
void* ddy_of(const BackwardBackward& layer) {
  return layer.ddy;
}

template <class T, class Out, int kOrder, class Layer>
int run(const Layer* layers, int count, Arena arena, void* stream, int64_t* bytes) {
  using A = Accumulator<T>;
  std::vector<Derivative<A>> all;
  std::vector<Finish<A>> finish;
  for (const Layer* l = layers; l < layers + count; ++l) {
    const Matrix& m = l->matrix;
    const A *u = static_cast<const A*>(l->u), *v = static_cast<const A*>(l->v);
    const RankOne<A> uv = m.transposed ? RankOne<A>{u, v} : RankOne<A>{v, u};
    // A null pointer is aligned.
    const bool vectors = in_vectors<kVectorWidth<T>>(m, {a_of(*l), l->dy, l->w, ddy_of(*l), l->dw});
    all.push_back({m, a_of(*l), l->dy, l->w, uv, static_cast<const A*>(l->sigma), ddy_of(*l), l->dw,
                   arena.take<Sums<A, 3>>(spans(m)), arena.take<Terms<A>>(1), vectors});
    finish.push_back({all.back()});
  }
  if (bytes != nullptr) {
    *bytes = arena.used();
    return cudaSuccess;
  }
  Launches launches{stream};
  launch_all(launches, products_kernel<T, Out, kOrder, A>, all);
  launch_all(launches, terms_kernel<A, kOrder>, finish);
  launch_all(launches, derivative_kernel<T, Out, kOrder, A>, all);
  return launches.error;
}

template <int kOrder, class Layer>
int run(const Options& options, const Layer* layers, int count, void* workspace, void* stream, int64_t* bytes) {
  return with_types(options, [&](auto t, auto out) {
    return run<decltype(t), decltype(out), kOrder>(layers, count, Arena(workspace), stream, bytes);
  });
}

}  // namespace

int64_t workspace_bytes(const Options& options, const Backward* layers, int count) {
  int64_t bytes = 0;
  run<1>(options, layers, count, nullptr, nullptr, &bytes);
  return bytes;
}
int64_t workspace_bytes(const Options& options, const BackwardBackward* layers, int count) {
  int64_t bytes = 0;
  run<2>(options, layers, count, nullptr, nullptr, &bytes);
  return bytes;
}

int launch(const Options& options, const Backward* layers, int count, void* workspace, void* stream) {
  return run<1>(options, layers, count, workspace, stream, nullptr);
}
int launch(const Options& options, const BackwardBackward* layers, int count, void* workspace, void* stream) {
  return run<2>(options, layers, count, workspace, stream, nullptr);
}

}  // namespace gankernels::spectral_norm::cuda

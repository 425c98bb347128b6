// Order 1.
#include "conditional_batch_norm_passes.h"

namespace gankernels::conditional_batch_norm::cpu::GK_ISA {

template <class T, Activation kAct>
void backward_sums(const Backward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  Scratch<A> scratch(7, widest(p));
  Affine<T> affine{scratch[0], scratch[1], scratch[2], {args, begin, end}};
  A* const total[2] = {scratch[3], scratch[4]};

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset;
    const Columns columns = Columns::of<T>(tile);
    affine.fill(args, tile, columns);
    const auto body = [&]<class V>(const V* in, const V* column, V* sums) GK_LAMBDA_INLINE {
      const V dz = activate_backward<kAct>(affine.z(in[0], column), in[1], splat<V>(slope));
      sums[0] += dz;
      sums[1] += dz * (in[0] - column[0]);
    };
    sweep_sums<T, kStrip<T>>(columns, {x, dy}, {affine.mean, affine.scale, affine.bias}, {scratch[5], scratch[6]},
                             total, body);
    for (int q = 0; q < 2; ++q) fold<T>(p, tile, columns, total[q], static_cast<A*>(partial) + q * t.slots * p.c);
  }
}

template <class T>
void backward_terms(const Backward& args, const void* partial, void* terms, int64_t c_begin, int64_t c_end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A *gain = static_cast<const A*>(args.gain), *sums = static_cast<const A*>(partial);
  A *dgain = static_cast<A*>(args.dgain), *dbias = static_cast<A*>(args.dbias), *of_x = static_cast<A*>(terms),
    *of_1 = of_x + p.c;
  const double pixels = double(p.n * p.l);

  for (int64_t c0 = c_begin; c0 < c_end; c0 += kBlock) {
    const int64_t width = c_end - c0 < kBlock ? c_end - c0 : kBlock;
    double rstd[kBlock], g[kBlock] = {}, gx[kBlock] = {};
    for (int64_t k = 0; k < width; ++k) rstd[k] = rstd_of<A>(args.var, c0 + k, p.eps);
    for_each_row<2>(p, t, sums, c0, width, [&](int64_t rc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      dbias[rc] = A(s[0]);
      dgain[rc] = A(rstd[k] * s[1]);
      g[k] += gain[rc] * s[0];
      gx[k] += gain[rc] * s[1];
    });
    for (int64_t k = 0; k < width; ++k) {
      const BackwardTerms<double> of =
          gankernels::conditional_batch_norm::backward_terms(rstd[k], g[k] / pixels, gx[k] / pixels);
      of_x[c0 + k] = A(of.of_x);
      of_1[c0 + k] = A(of.of_1);
    }
  }
}

template <class T, Activation kAct>
void backward(const Backward& args, const void* terms, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope), *mean = static_cast<const A*>(args.mean);
  const A *of_x = static_cast<const A*>(terms), *of_1 = of_x + p.c;
  Scratch<A> scratch(5, widest(p));
  Affine<T> affine{scratch[0], scratch[1], scratch[2], {args, begin, end}};
  A *xs = scratch[3], *ones = scratch[4];
  const bool statistics_depend_on_x = p.batch_statistics;

  const bool past_cache = is_large<T>(p);
  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset;
    T* dx = static_cast<T*>(args.dx) + tile.offset;
    const Columns columns = Columns::of<T>(tile);
    affine.fill(args, tile, columns);
    expand<T>(tile, columns, xs, [&](int64_t c) { return of_x[c]; });
    expand<T>(tile, columns, ones, [&](int64_t c) { return constant_of<T>(of_1[c], of_x[c], mean[c]); });
    const auto body = [&]<class V>(const V* in, const V* column, V* out) GK_LAMBDA_INLINE {
      const V dz = activate_backward<kAct>(affine.z(in[0], column), in[1], splat<V>(slope));
      const V xm = from_origin<T>(in[0], column[0]), scale = column[1], of_x = column[3], of_1 = column[4];
      // A branch, not a product with zero: constant statistics must not spread an infinite x.
      out[0] = statistics_depend_on_x ? scale * dz + (of_x * xm + of_1) : scale * dz;
    };
    sweep<T>(columns, {x, dy}, {affine.mean, affine.scale, affine.bias, xs, ones}, {dx}, past_cache, body);
  }
  end_of_stream();
}

#define GK_INSTANTIATE_ACTIVATION(T, kAct)                                        \
  template void backward_sums<T, kAct>(const Backward&, void*, int64_t, int64_t); \
  template void backward<T, kAct>(const Backward&, const void*, int64_t, int64_t);
#define GK_INSTANTIATE(T)                                                                 \
  template void backward_terms<T>(const Backward&, const void*, void*, int64_t, int64_t); \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kNone)                                         \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kRelu)                                         \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kLeakyRelu)
GK_FOR_EACH_TYPE(GK_INSTANTIATE)

}  // namespace gankernels::conditional_batch_norm::cpu::GK_ISA

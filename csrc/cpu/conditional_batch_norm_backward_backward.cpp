// Order 2.
#include "conditional_batch_norm_passes.h"

namespace gankernels::conditional_batch_norm::cpu::GK_ISA {

template <class T, Activation kAct>
void backward_backward_sums(const BackwardBackward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  Scratch<A> scratch(13, widest(p));
  Affine<T> affine{scratch[0], scratch[1], scratch[2], {args, begin, end}};
  A* const total[5] = {scratch[3], scratch[4], scratch[5], scratch[6], scratch[7]};
  A* const run[5] = {scratch[8], scratch[9], scratch[10], scratch[11], scratch[12]};

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset,
            *ddx = static_cast<const T*>(args.ddx) + tile.offset;
    const Columns columns = Columns::of<T>(tile);
    affine.fill(args, tile, columns);
    const auto body = [&]<class V>(const V* in, const V* column, V* sums) GK_LAMBDA_INLINE {
      const V xm = in[0] - column[0], a = in[2];
      const V dz = activate_backward<kAct>(affine.z(in[0], column), in[1], splat<V>(slope));
      sums[0] += dz;
      sums[1] += dz * xm;
      sums[2] += a;
      sums[3] += a * xm;
      sums[4] += dz * a;
    };
    sweep_sums<T, kStrip<T>>(columns, {x, dy, ddx}, {affine.mean, affine.scale, affine.bias}, run, total, body);
    for (int q = 0; q < 5; ++q) fold<T>(p, tile, columns, total[q], static_cast<A*>(partial) + q * t.slots * p.c);
  }
}

template <class T>
void backward_backward_terms(const BackwardBackward& args, const void* partial, void* terms, int64_t c_begin,
                             int64_t c_end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A *gain = static_cast<const A*>(args.gain), *ddgain = static_cast<const A*>(args.ddgain),
          *sums = static_cast<const A*>(partial);
  A *dgain = static_cast<A*>(args.dgain), *of = static_cast<A*>(terms);
  const double pixels = double(p.n * p.l);

  for (int64_t c0 = c_begin; c0 < c_end; c0 += kBlock) {
    const int64_t width = c_end - c0 < kBlock ? c_end - c0 : kBlock;
    double rstd[kBlock], g[kBlock] = {}, gx[kBlock] = {}, a[kBlock] = {}, ax[kBlock] = {}, ag[kBlock] = {},
                         q[kBlock] = {}, qx[kBlock] = {};
    for (int64_t k = 0; k < width; ++k) rstd[k] = rstd_of<A>(args.var, c0 + k, p.eps);
    for_each_row<5>(p, t, sums, c0, width, [&](int64_t rc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      g[k] += gain[rc] * s[0];
      gx[k] += gain[rc] * s[1];
      a[k] += s[2];
      ax[k] += s[3];
      ag[k] += gain[rc] * s[4];
      q[k] += ddgain[rc] * s[0];
      qx[k] += ddgain[rc] * s[1];
    });
    ChannelMeans<double> means[kBlock];
    for (int64_t k = 0; k < width; ++k) {
      const double r = rstd[k];
      if (p.batch_statistics)
        means[k] = {g[k] / pixels,  r * gx[k] / pixels, a[k] / pixels,     r * ax[k] / pixels,
                    ag[k] / pixels, q[k] / pixels,      r * qx[k] / pixels};
      const ChannelTerms<double> terms_of = channel_terms(r, means[k]);
      const double row[5] = {terms_of.of_ddx, terms_of.of_x, terms_of.of_1, means[k].a, means[k].ax};
      for (int i = 0; i < 5; ++i) of[i * p.c + c0 + k] = A(row[i]);
    }
    for_each_row<5>(p, t, sums, c0, width, [&](int64_t rc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      dgain[rc] = A(second_order_dgain(rstd[k], s[0], s[1], s[4], means[k]));
    });
  }
}

template <class T, Activation kAct>
void backward_backward(const BackwardBackward& args, const void* terms, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  const A *of = static_cast<const A*>(terms), *mean = static_cast<const A*>(args.mean);
  Scratch<A> scratch(8, widest(p));
  Affine<T> affine{scratch[0], scratch[1], scratch[2], {args, begin, end}};
  A *ddxs = scratch[3], *xs = scratch[4], *ones = scratch[5], *dzs = scratch[6], *masks = scratch[7];
  const bool statistics_depend_on_x = p.batch_statistics;

  const bool past_cache = is_large<T>(p);
  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset,
            *ddx = static_cast<const T*>(args.ddx) + tile.offset;
    T *ddy = static_cast<T*>(args.ddy) + tile.offset, *dx = static_cast<T*>(args.dx) + tile.offset;
    const Columns columns = Columns::of<T>(tile);
    affine.fill(args, tile, columns);
    const int64_t row = p.row_of(tile.sample) * p.c;
    const A *gain = static_cast<const A*>(args.gain) + row, *ddgain = static_cast<const A*>(args.ddgain) + row,
            *ddbias = static_cast<const A*>(args.ddbias) + row;
    const auto of_row = [&](int64_t c) GK_LAMBDA_INLINE {
      const double rstd = affine.rstd[c];
      ChannelMeans<double> means;
      means.a = of[3 * p.c + c];
      means.ax = of[4 * p.c + c];
      const RowTerms<double> terms = row_terms<double>(rstd, gain[c] * rstd, ddgain[c], ddbias[c], means);
      return RowTerms<A>{A(terms.of_dz), A(terms.of_mask)};
    };
    expand<T>(tile, columns, ddxs, [&](int64_t c) { return of[c]; });
    expand<T>(tile, columns, xs, [&](int64_t c) { return of[p.c + c]; });
    expand<T>(tile, columns, ones, [&](int64_t c) { return constant_of<T>(of[2 * p.c + c], of[p.c + c], mean[c]); });
    expand<T>(tile, columns, dzs, [&](int64_t c) { return of_row(c).of_dz; });
    expand<T>(tile, columns, masks,
              [&](int64_t c) { return constant_of<T>(of_row(c).of_mask, of_row(c).of_dz, mean[c]); });
    const auto body = [&]<class V>(const V* in, const V* column, V* out) GK_LAMBDA_INLINE {
      const V scale = column[1], of_ddx = column[3], of_x = column[4], of_1 = column[5], of_dz = column[6],
              of_mask = column[7];
      const V xm = from_origin<T>(in[0], column[0]), z = affine.z(in[0], column), a = in[2];
      const V dz = activate_backward<kAct>(z, in[1], splat<V>(slope));
      out[0] = activate_backward<kAct>(z, scale * a + (of_dz * xm + of_mask), splat<V>(slope));
      out[1] = statistics_depend_on_x ? of_ddx * a + of_dz * dz + (of_x * xm + of_1) : of_dz * dz;
    };
    sweep<T>(columns, {x, dy, ddx}, {affine.mean, affine.scale, affine.bias, ddxs, xs, ones, dzs, masks}, {ddy, dx},
             past_cache, body);
  }
  end_of_stream();
}

#define GK_INSTANTIATE_ACTIVATION(T, kAct)                                                         \
  template void backward_backward_sums<T, kAct>(const BackwardBackward&, void*, int64_t, int64_t); \
  template void backward_backward<T, kAct>(const BackwardBackward&, const void*, int64_t, int64_t);
#define GK_INSTANTIATE(T)                                                                                  \
  template void backward_backward_terms<T>(const BackwardBackward&, const void*, void*, int64_t, int64_t); \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kNone)                                                          \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kRelu)                                                          \
  GK_INSTANTIATE_ACTIVATION(T, Activation::kLeakyRelu)
GK_FOR_EACH_TYPE(GK_INSTANTIATE)

}  // namespace gankernels::conditional_batch_norm::cpu::GK_ISA

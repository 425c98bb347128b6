// Built once per instruction set: GK_ISA is the namespace, GK_VECTOR_BYTES the width of a register.
#include "conditional_batch_norm.h"

#include <cmath>

#include "tile.h"

namespace gankernels::conditional_batch_norm::cpu::GK_ISA {
namespace {

using namespace gankernels::cpu::GK_ISA;

template <class T>
using AccumulatorT = typename AccumulatorOf<T>::type;

// Channels that a middle step takes together, so that its loops over samples vectorise.
constexpr int64_t kBlock = 64;

// Rows that the sums of the backwards take in one strip (sweep_sums), and how far ahead a strip asks for its operands:
// the processor does not foresee its jumps from row to row.
template <class T>
constexpr int64_t kStrip = sizeof(T) == 2 ? 4 : 1;
constexpr int64_t kPrefetchRows = 8;

// Rows whose mean is the origin of a column's deviations.
constexpr int64_t kLeadRows = 4;

Tile tile_at(const Problem& p, const Tiling& t, int64_t index) {
  if (p.layout == Layout::kContiguous) {
    const int64_t c = index / p.n, n = index % p.n;
    return {(n * p.c + c) * p.l, n, c, 1, p.l, n};
  }
  const int64_t splits = t.slots / p.n, n = index / splits, row = index % splits * t.rows_of_tile;
  return {(n * p.l + row) * p.c, n, 0, p.c, rows_of_slot(p, t, index), index};
}

int64_t widest(const Problem& p) {
  const int64_t channels = p.layout == Layout::kContiguous ? 1 : p.c;
  return channels + 64 * kLanes<float>;
}

// Rounded once: it multiplies everything.
template <class A>
GK_INLINE A rstd_of(const void* var, int64_t c, double eps) {
  return A(1 / std::sqrt(static_cast<const A*>(var)[c] + eps));
}

// Fills dst[column] with value(channel).
template <class A, class Value>
GK_INLINE void expand(const Tile& tile, const Columns& columns, A* dst, Value&& value) {
  for (int64_t k = 0; k < tile.channels; ++k) dst[k] = value(tile.first_channel + k);
  for (int64_t j = tile.channels; j < columns.width; ++j) dst[j] = dst[j - tile.channels];
}

// Adds up the columns of each channel into the partial results [slots, C].
template <class A>
GK_INLINE void fold(const Problem& p, const Tile& tile, const Columns& columns, const A* column_sums, A* partial) {
  A* dst = partial + tile.slot * p.c + tile.first_channel;
  for (int64_t k = 0; k < tile.channels; ++k) dst[k] = column_sums[k];
  for (int64_t j = tile.channels, k = 0; j < columns.width; ++j) {
    dst[k] += column_sums[j];
    if (++k == tile.channels) k = 0;
  }
}

// What z needs of each column: z = (x - mean) * scale + bias, in the forward and in every backward alike, so that all
// find the same sign.
template <class A>
struct Affine {
  A *mean, *scale, *bias;
  int64_t sample = -1, channel = -1, width = -1;  // of what the columns hold

  template <class Args>
  GK_INLINE void fill(const Args& args, const Tile& tile, const Columns& columns) {
    if (sample == tile.sample && channel == tile.first_channel && width == columns.width) return;
    sample = tile.sample, channel = tile.first_channel, width = columns.width;
    const double eps = args.problem.eps;
    const int64_t row = tile.sample * args.problem.c;
    const A *gains = static_cast<const A*>(args.gain) + row, *biases = static_cast<const A*>(args.bias) + row;
    expand(tile, columns, mean, [&](int64_t c) { return static_cast<const A*>(args.mean)[c]; });
    expand(tile, columns, scale, [&](int64_t c) { return gains[c] * rstd_of<A>(args.var, c, eps); });
    expand(tile, columns, bias, [&](int64_t c) { return biases[c]; });
  }
};

// ---- Order 0 ----

template <class T>
void statistics(const Forward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  double *means = static_cast<double*>(partial), *m2s = means + t.slots * p.c;
  Scratch<A> scratch(5, widest(p));
  A *shift = scratch[0], *sum = scratch[1], *square = scratch[2];
  A* const run[2] = {scratch[3], scratch[4]};

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T* x = static_cast<const T*>(args.x) + tile.offset;
    const Columns columns = Columns::of<A>(tile);

    // Sums of deviations from the mean of a column's first rows: one pass, and no cancellation worth the name, since a
    // value that is far off in those rows is also part of the variance.
    clear(shift, columns.width);
    Columns lead = columns;
    if (lead.rows > kLeadRows) lead.rows = kLeadRows;
    if (lead.rows > 0) lead.remainder = 0;
    sweep<A>(lead, [&]<class V>(int64_t e, int64_t j) GK_LAMBDA_INLINE { add(shift + j, load<V>(x + e)); });
    const A share = lead.rows > 0 ? A(1) / A(lead.rows) : A(1);
    for (int64_t j = 0; j < columns.width; ++j) shift[j] *= share;

    const int64_t ahead = kPrefetchRows * columns.width;
    sweep_sums<A, 4>(columns, run, {sum, square}, [&]<class V>(int64_t e, int64_t j, V* sums) GK_LAMBDA_INLINE {
      const V d = load<V>(x + e) - load<V>(shift + j);
      __builtin_prefetch(x + e + ahead);
      sums[0] += d;
      sums[1] += d * d;
    });

    const auto moments = [&](int64_t j) GK_LAMBDA_INLINE {
      const double count = double(columns.rows + (j < columns.remainder)), d = count > 0 ? sum[j] / count : 0;
      return Moments<double>{count, shift[j] + d, square[j] - sum[j] * d};
    };
    double *mean = means + tile.slot * p.c + tile.first_channel, *m2 = m2s + tile.slot * p.c + tile.first_channel;
    for (int64_t k = 0; k < tile.channels; ++k) {
      Moments<double> m = moments(k);
      for (int64_t j = k + tile.channels; j < columns.width; j += tile.channels) m = merge(m, moments(j));
      mean[k] = m.mean;
      m2[k] = m.m2;
    }
  }
}

template <class T>
void merge_statistics(const Forward& args, const void* partial, int64_t c_begin, int64_t c_end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const double *means = static_cast<const double*>(partial), *m2s = means + t.slots * p.c;
  for (int64_t c0 = c_begin; c0 < c_end; c0 += kBlock) {
    const int64_t width = c_end - c0 < kBlock ? c_end - c0 : kBlock;
    double count = 0, mean[kBlock] = {}, m2[kBlock] = {};
    for (int64_t slot = 0; slot < t.slots; ++slot) {
      const double rows = double(rows_of_slot(p, t, slot)), share = rows / (count + rows);
      for (int64_t k = 0; k < width; ++k) {
        const double delta = means[slot * p.c + c0 + k] - mean[k];
        mean[k] += delta * share;
        m2[k] += m2s[slot * p.c + c0 + k] + delta * delta * count * share;
      }
      count += rows;
    }
    for (int64_t k = 0; k < width; ++k) {
      static_cast<A*>(args.mean)[c0 + k] = count > 0 ? A(mean[k]) : A(NAN);
      static_cast<A*>(args.var)[c0 + k] = A(m2[k] / count);
    }
  }
}

template <class T, Activation kAct>
void forward(const Forward& args, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  Scratch<A> scratch(3, widest(p));
  Affine<A> affine{scratch[0], scratch[1], scratch[2]};

  // Backwards: the last tiles of the pass before are still in the cache.
  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T* x = static_cast<const T*>(args.x) + tile.offset;
    T* y = static_cast<T*>(args.y) + tile.offset;
    const Columns columns = Columns::of<A>(tile);
    affine.fill(args, tile, columns);
    sweep<A>(columns, [&]<class V>(int64_t e, int64_t j) GK_LAMBDA_INLINE {
      const V mean = load<V>(affine.mean + j), scale = load<V>(affine.scale + j), bias = load<V>(affine.bias + j);
      const V z = (load<V>(x + e) - mean) * scale + bias;
      store(y + e, activate<kAct>(z, splat<V>(slope)));
    });
  }
}

// ---- Order 1 ----

template <class T, Activation kAct>
void backward_sums(const Backward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  Scratch<A> scratch(7, widest(p));
  Affine<A> affine{scratch[0], scratch[1], scratch[2]};
  A* const total[2] = {scratch[3], scratch[4]};
  A* const run[2] = {scratch[5], scratch[6]};

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset;
    const Columns columns = Columns::of<A>(tile);
    affine.fill(args, tile, columns);
    const int64_t ahead = kPrefetchRows * columns.width;
    sweep_sums<A, kStrip<T>>(columns, run, total, [&]<class V>(int64_t e, int64_t j, V* sums) GK_LAMBDA_INLINE {
      const V mean = load<V>(affine.mean + j), scale = load<V>(affine.scale + j), bias = load<V>(affine.bias + j);
      const V xm = load<V>(x + e) - mean, z = xm * scale + bias;
      const V dz = activate_backward<kAct>(z, load<V>(dy + e), splat<V>(slope));
      if constexpr (kStrip<T> > 1) __builtin_prefetch(x + e + ahead), __builtin_prefetch(dy + e + ahead);
      sums[0] += dz;
      sums[1] += dz * xm;
    });
    for (int q = 0; q < 2; ++q) fold(p, tile, columns, total[q], static_cast<A*>(partial) + q * t.slots * p.c);
  }
}

// Calls body(nc, k, sums) for the samples and channels c0 + k of a block: nc is the place in [N, C], and the sums are
// those over the sample's slots.
template <int kSums, class A, class Body>
GK_INLINE void for_each_sample(const Problem& p, const Tiling& t, const A* partial, int64_t c0, int64_t width,
                               Body&& body) {
  const int64_t splits = p.n > 0 ? t.slots / p.n : 0, stride = t.slots * p.c;
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t k = 0; k < width; ++k) {
      double sums[kSums] = {};
      for (int64_t s = 0; s < splits; ++s)
        for (int q = 0; q < kSums; ++q) sums[q] += partial[q * stride + (n * splits + s) * p.c + c0 + k];
      body(n * p.c + c0 + k, k, sums);
    }
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
    A rstd[kBlock];
    double g[kBlock] = {}, gx[kBlock] = {};
    for (int64_t k = 0; k < width; ++k) rstd[k] = rstd_of<A>(args.var, c0 + k, p.eps);
    for_each_sample<2>(p, t, sums, c0, width, [&](int64_t nc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      dbias[nc] = A(s[0]);
      dgain[nc] = A(rstd[k] * s[1]);
      g[k] += gain[nc] * s[0];
      gx[k] += gain[nc] * s[1];
    });
    for (int64_t k = 0; k < width; ++k) {
      const BackwardTerms<A> of =
          gankernels::conditional_batch_norm::backward_terms(rstd[k], A(g[k] / pixels), A(gx[k] / pixels));
      of_x[c0 + k] = of.of_x;
      of_1[c0 + k] = of.of_1;
    }
  }
}

template <class T, Activation kAct>
void backward(const Backward& args, const void* terms, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  const A *of_x = static_cast<const A*>(terms), *of_1 = of_x + p.c;
  Scratch<A> scratch(5, widest(p));
  Affine<A> affine{scratch[0], scratch[1], scratch[2]};
  A *xs = scratch[3], *ones = scratch[4];
  const bool statistics_depend_on_x = p.batch_statistics;

  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset;
    T* dx = static_cast<T*>(args.dx) + tile.offset;
    const Columns columns = Columns::of<A>(tile);
    affine.fill(args, tile, columns);
    expand(tile, columns, xs, [&](int64_t c) { return of_x[c]; });
    expand(tile, columns, ones, [&](int64_t c) { return of_1[c]; });
    sweep<A>(columns, [&]<class V>(int64_t e, int64_t j) GK_LAMBDA_INLINE {
      const V mean = load<V>(affine.mean + j), scale = load<V>(affine.scale + j), bias = load<V>(affine.bias + j);
      const V a = load<V>(xs + j), b = load<V>(ones + j);
      const V xm = load<V>(x + e) - mean, z = xm * scale + bias;
      const V dz = activate_backward<kAct>(z, load<V>(dy + e), splat<V>(slope));
      // A branch, not a product with zero: constant statistics must not spread an infinite x.
      store(dx + e, statistics_depend_on_x ? scale * dz + (a * xm + b) : scale * dz);
    });
  }
}

// ---- Order 2 ----

template <class T, Activation kAct>
void backward_backward_sums(const BackwardBackward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  Scratch<A> scratch(13, widest(p));
  Affine<A> affine{scratch[0], scratch[1], scratch[2]};
  A* const total[5] = {scratch[3], scratch[4], scratch[5], scratch[6], scratch[7]};
  A* const run[5] = {scratch[8], scratch[9], scratch[10], scratch[11], scratch[12]};

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset,
            *ddx = static_cast<const T*>(args.ddx) + tile.offset;
    const Columns columns = Columns::of<A>(tile);
    affine.fill(args, tile, columns);
    const int64_t ahead = kPrefetchRows * columns.width;
    sweep_sums<A, kStrip<T>>(columns, run, total, [&]<class V>(int64_t e, int64_t j, V* sums) GK_LAMBDA_INLINE {
      const V mean = load<V>(affine.mean + j), scale = load<V>(affine.scale + j), bias = load<V>(affine.bias + j);
      const V xm = load<V>(x + e) - mean, z = xm * scale + bias, a = load<V>(ddx + e);
      const V dz = activate_backward<kAct>(z, load<V>(dy + e), splat<V>(slope));
      if constexpr (kStrip<T> > 1) __builtin_prefetch(x + e + ahead), __builtin_prefetch(dy + e + ahead);
      sums[0] += dz;
      sums[1] += dz * xm;
      sums[2] += a;
      sums[3] += a * xm;
      sums[4] += dz * a;
    });
    for (int q = 0; q < 5; ++q) fold(p, tile, columns, total[q], static_cast<A*>(partial) + q * t.slots * p.c);
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
    A rstd[kBlock];
    double g[kBlock] = {}, gx[kBlock] = {}, a[kBlock] = {}, ax[kBlock] = {}, ag[kBlock] = {}, q[kBlock] = {},
           qx[kBlock] = {};
    for (int64_t k = 0; k < width; ++k) rstd[k] = rstd_of<A>(args.var, c0 + k, p.eps);
    for_each_sample<5>(p, t, sums, c0, width, [&](int64_t nc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      g[k] += gain[nc] * s[0];
      gx[k] += gain[nc] * s[1];
      a[k] += s[2];
      ax[k] += s[3];
      ag[k] += gain[nc] * s[4];
      q[k] += ddgain[nc] * s[0];
      qx[k] += ddgain[nc] * s[1];
    });
    ChannelMeans<A> means[kBlock];
    for (int64_t k = 0; k < width; ++k) {
      const double r = rstd[k];
      if (p.batch_statistics)
        means[k] = {A(g[k] / pixels),  A(r * gx[k] / pixels), A(a[k] / pixels),     A(r * ax[k] / pixels),
                    A(ag[k] / pixels), A(q[k] / pixels),      A(r * qx[k] / pixels)};
      const ChannelTerms<A> terms_of = channel_terms(rstd[k], means[k]);
      const A row[5] = {terms_of.of_ddx, terms_of.of_x, terms_of.of_1, means[k].a, means[k].ax};
      for (int i = 0; i < 5; ++i) of[i * p.c + c0 + k] = row[i];
    }
    for_each_sample<5>(p, t, sums, c0, width, [&](int64_t nc, int64_t k, const double* s) GK_LAMBDA_INLINE {
      dgain[nc] = second_order_dgain(rstd[k], A(s[0]), A(s[1]), A(s[4]), means[k]);
    });
  }
}

template <class T, Activation kAct>
void backward_backward(const BackwardBackward& args, const void* terms, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  const A slope = A(p.slope);
  const A* of = static_cast<const A*>(terms);
  Scratch<A> scratch(8, widest(p));
  Affine<A> affine{scratch[0], scratch[1], scratch[2]};
  A *ddxs = scratch[3], *xs = scratch[4], *ones = scratch[5], *dzs = scratch[6], *masks = scratch[7];
  const bool statistics_depend_on_x = p.batch_statistics;

  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T *x = static_cast<const T*>(args.x) + tile.offset, *dy = static_cast<const T*>(args.dy) + tile.offset,
            *ddx = static_cast<const T*>(args.ddx) + tile.offset;
    T *ddy = static_cast<T*>(args.ddy) + tile.offset, *dx = static_cast<T*>(args.dx) + tile.offset;
    const Columns columns = Columns::of<A>(tile);
    affine.fill(args, tile, columns);
    const int64_t row = tile.sample * p.c;
    const A *gain = static_cast<const A*>(args.gain) + row, *ddgain = static_cast<const A*>(args.ddgain) + row,
            *ddbias = static_cast<const A*>(args.ddbias) + row;
    const auto sample = [&](int64_t c) GK_LAMBDA_INLINE {
      const A rstd = rstd_of<A>(args.var, c, p.eps);
      ChannelMeans<A> means;
      means.a = of[3 * p.c + c];
      means.ax = of[4 * p.c + c];
      return sample_terms(rstd, gain[c] * rstd, ddgain[c], ddbias[c], means);
    };
    expand(tile, columns, ddxs, [&](int64_t c) { return of[c]; });
    expand(tile, columns, xs, [&](int64_t c) { return of[p.c + c]; });
    expand(tile, columns, ones, [&](int64_t c) { return of[2 * p.c + c]; });
    expand(tile, columns, dzs, [&](int64_t c) { return sample(c).of_dz; });
    expand(tile, columns, masks, [&](int64_t c) { return sample(c).of_mask; });
    sweep<A>(columns, [&]<class V>(int64_t e, int64_t j) GK_LAMBDA_INLINE {
      const V mean = load<V>(affine.mean + j), scale = load<V>(affine.scale + j), bias = load<V>(affine.bias + j);
      const V of_ddx = load<V>(ddxs + j), of_x = load<V>(xs + j), of_1 = load<V>(ones + j), of_dz = load<V>(dzs + j),
              of_mask = load<V>(masks + j);
      const V xm = load<V>(x + e) - mean, z = xm * scale + bias, a = load<V>(ddx + e);
      const V dz = activate_backward<kAct>(z, load<V>(dy + e), splat<V>(slope));
      const V inner = scale * a + (of_dz * xm + of_mask);
      store(ddy + e, activate_backward<kAct>(z, inner, splat<V>(slope)));
      store(dx + e, statistics_depend_on_x ? of_ddx * a + of_dz * dz + (of_x * xm + of_1) : of_dz * dz);
    });
  }
}

template <class T, Activation kAct>
constexpr Passes kPasses = {statistics<T>,
                            merge_statistics<T>,
                            forward<T, kAct>,
                            backward_sums<T, kAct>,
                            backward_terms<T>,
                            backward<T, kAct>,
                            backward_backward_sums<T, kAct>,
                            backward_backward_terms<T>,
                            backward_backward<T, kAct>};

#define GK_ROW(T) {kPasses<T, Activation::kNone>, kPasses<T, Activation::kRelu>, kPasses<T, Activation::kLeakyRelu>}

}  // namespace

extern const Table table = {GK_ROW(float), GK_ROW(double), GK_ROW(BFloat16), GK_ROW(Float16)};

}  // namespace gankernels::conditional_batch_norm::cpu::GK_ISA

// Order 0, and the table of all passes.
#include "conditional_batch_norm_passes.h"

namespace gankernels::conditional_batch_norm::cpu::GK_ISA {

// Rows whose mean is the origin of a column's deviations.
constexpr int64_t kLeadRows = 4;

template <class T>
void statistics(const Forward& args, void* partial, int64_t begin, int64_t end) {
  using A = AccumulatorT<T>;
  const Problem& p = args.problem;
  const Tiling t = tiling(p);
  double *means = static_cast<double*>(partial), *m2s = means + t.slots * p.c;
  Scratch<A> scratch(5, widest(p));
  A *shift = scratch[0], *sum = scratch[1], *square = scratch[2];

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_at(p, t, i);
    const T* x = static_cast<const T*>(args.x) + tile.offset;
    const Columns columns = Columns::of<T>(tile);

    // Sums of deviations from the mean of a column's first rows: one pass, and no cancellation worth the name, since a
    // value that is far off in those rows is also part of the variance.
    Columns lead = columns;
    if (lead.rows > kLeadRows) lead.rows = kLeadRows;
    if (lead.rows > 0) lead.remainder = 0;
    const auto add_x = [&]<class V>(const V* in, const V*, V* sums) GK_LAMBDA_INLINE { sums[0] += in[0]; };
    sweep_sums<T, 1>(lead, {x}, {shift}, {sum}, {shift}, add_x);
    const A share = lead.rows > 0 ? A(1) / A(lead.rows) : A(1);
    for (int64_t j = 0; j < columns.width; ++j) shift[j] *= share;

    const auto add_deviation = [&]<class V>(const V* in, const V* column, V* sums) GK_LAMBDA_INLINE {
      const V d = in[0] - column[0];
      sums[0] += d;
      sums[1] += d * d;
    };
    sweep_sums<T, 4>(columns, {x}, {shift}, {scratch[3], scratch[4]}, {sum, square}, add_deviation);

    const auto moments = [&](int64_t column) GK_LAMBDA_INLINE {
      const int64_t j = columns.place<T>(column);
      const double count = double(columns.rows + (column < columns.remainder)), d = count > 0 ? sum[j] / count : 0;
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

template <class T, class Out>
void merge_statistics(const Forward& args, const void* partial, int64_t c_begin, int64_t c_end) {
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
      static_cast<Out*>(args.mean)[c0 + k] = count > 0 ? Out(mean[k]) : Out(NAN);
      static_cast<Out*>(args.var)[c0 + k] = Out(m2[k] / count);
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
  Affine<T> affine{scratch[0], scratch[1], scratch[2], {args, begin, end}};

  // Backwards: the last tiles of the pass before are still in the cache.
  const bool past_cache = is_large<T>(p);
  for (int64_t i = end; i-- > begin;) {
    const Tile tile = tile_at(p, t, i);
    const T* x = static_cast<const T*>(args.x) + tile.offset;
    T* y = static_cast<T*>(args.y) + tile.offset;
    const Columns columns = Columns::of<T>(tile);
    affine.fill(args, tile, columns);
    const auto body = [&]<class V>(const V* in, const V* column, V* out)
                          GK_LAMBDA_INLINE { out[0] = activate<kAct>(affine.z(in[0], column), splat<V>(slope)); };
    sweep<T>(columns, {x}, {affine.mean, affine.scale, affine.bias}, {y}, past_cache, body);
  }
  end_of_stream();
}

template <class T, Activation kAct>
constexpr Passes kPasses = {statistics<T>,
                            merge_statistics<T, AccumulatorT<T>>,
                            merge_statistics<T, double>,
                            forward<T, kAct>,
                            backward_sums<T, kAct>,
                            backward_terms<T>,
                            backward<T, kAct>,
                            fold_sums<T, 2>,
                            backward_backward_sums<T, kAct>,
                            backward_backward_terms<T>,
                            backward_backward<T, kAct>,
                            fold_sums<T, 5>};

#define GK_ROW(T) {kPasses<T, Activation::kNone>, kPasses<T, Activation::kRelu>, kPasses<T, Activation::kLeakyRelu>},
extern const Table table = {GK_FOR_EACH_TYPE(GK_ROW)};

}  // namespace gankernels::conditional_batch_norm::cpu::GK_ISA

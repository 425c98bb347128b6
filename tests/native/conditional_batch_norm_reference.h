// Conditional batch normalisation, orders 0 to 2, by its definition: plain loops, second order by reversing the
// first line by line. It shares nothing with csrc, and is itself held against central differences.
#pragma once

#include <cstddef>
#include <vector>

#include "check.h"

namespace reference {

using Numbers = std::vector<double>;

// Pictures are [N, C, L], whatever the layout under test.
struct Inputs {
  size_t n, c, l;
  bool batch_statistics, linear;       // linear: no activation
  double slope, eps;                   // slope of the activation below zero
  Numbers x, dy, ddx;                  // [N, C, L]
  Numbers gain, bias, ddgain, ddbias;  // [N, C]
  Numbers mean, var;                   // [C], used where not batch_statistics
};

using Results = std::vector<Bounded>;

struct Outputs {
  Results z, y, dx, ddy, second_dx;    // [N, C, L]
  Results dgain, dbias, second_dgain;  // [N, C]
  Results mean, var;                   // [C]
};

inline Outputs conditional_batch_norm(const Inputs& in) {
  const size_t planes = in.n * in.c, pixels = planes * in.l;
  const long double m = in.n * in.l;
  Outputs out;
  for (Results* r : {&out.z, &out.y, &out.dx, &out.ddy, &out.second_dx}) r->resize(pixels);
  for (Results* r : {&out.dgain, &out.dbias, &out.second_dgain}) r->resize(planes);
  for (Results* r : {&out.mean, &out.var}) r->resize(in.c);

  for (size_t c = 0; c < in.c; ++c) {
    const auto each = [&](auto f) {
      for (size_t n = 0; n < in.n; ++n) {
        for (size_t l = 0; l < in.l; ++l) f(n * in.c + c, (n * in.c + c) * in.l + l);
      }
    };
    Bounded mean, var;
    if (in.batch_statistics) {
      each([&](size_t, size_t i) { mean += Bounded(in.x[i]) / m; });
      each([&](size_t, size_t i) { var += (in.x[i] - mean) * (in.x[i] - mean) / m; });
    } else {
      mean = in.mean[c], var = in.var[c];
    }
    out.mean[c] = mean, out.var[c] = var;
    const Bounded rstd = reciprocal_root(var + in.eps);
    const auto x_hat = [&](size_t i) { return (in.x[i] - mean) * rstd; };
    const auto slope = [&](size_t i) -> Bounded { return in.linear || out.z[i].value > 0 ? 1 : in.slope; };
    const auto dz = [&](size_t i) { return slope(i) * in.dy[i]; };

    // y = act(z)
    each([&](size_t p, size_t i) {
      out.z[i] = x_hat(i) * in.gain[p] + in.bias[p];
      out.y[i] = slope(i) * out.z[i];
    });

    // dx = rstd (g - mean_g - x_hat mean_gx), with g = gain dz
    Bounded mean_g, mean_gx;
    each([&](size_t p, size_t i) {
      out.dbias[p] += dz(i);
      out.dgain[p] += dz(i) * x_hat(i);
      if (in.batch_statistics) mean_g += dz(i) * in.gain[p] / m;
      if (in.batch_statistics) mean_gx += dz(i) * in.gain[p] * x_hat(i) / m;
    });
    const auto centred = [&](size_t p, size_t i) { return dz(i) * in.gain[p] - mean_g - x_hat(i) * mean_gx; };
    each([&](size_t p, size_t i) { out.dx[i] = rstd * centred(p, i); });

    // In reverse: bar_v is the derivative of <ddx, dx> + <ddgain, dgain> + <ddbias, dbias> by v.
    Bounded bar_mean_g, bar_mean_gx, bar_rstd;
    each([&](size_t p, size_t i) {
      bar_rstd += in.ddx[i] * centred(p, i);
      if (in.batch_statistics) bar_mean_g += -(in.ddx[i] * rstd);
      if (in.batch_statistics) bar_mean_gx += -(in.ddx[i] * rstd * x_hat(i));
    });
    Bounded bar_mean;
    const auto bar_x_hat = [&](size_t p, size_t i) {
      return in.ddgain[p] * dz(i) - in.ddx[i] * rstd * mean_gx + bar_mean_gx * dz(i) * in.gain[p] / m;
    };
    each([&](size_t p, size_t i) {
      const Bounded bar_g = in.ddx[i] * rstd + bar_mean_g / m + bar_mean_gx * x_hat(i) / m;
      out.ddy[i] = slope(i) * (bar_g * in.gain[p] + in.ddgain[p] * x_hat(i) + in.ddbias[p]);
      out.second_dgain[p] += bar_g * dz(i);
      bar_rstd += bar_x_hat(p, i) * (in.x[i] - mean);
    });
    const Bounded bar_var = Bounded(-0.5) * rstd * rstd * rstd * bar_rstd;
    const auto bar_deviation = [&](size_t p, size_t i) {
      return bar_x_hat(p, i) * rstd + (in.batch_statistics ? bar_var * 2 * (in.x[i] - mean) / m : Bounded());
    };
    each([&](size_t p, size_t i) {
      if (in.batch_statistics) bar_mean += -bar_deviation(p, i);
    });
    each([&](size_t p, size_t i) { out.second_dx[i] = bar_deviation(p, i) + bar_mean / m; });
  }
  return out;
}

}  // namespace reference

// What the bindings of conditional batch normalisation share: arguments in the form that kernels take, and how the
// CPU's passes are spread over threads.
#pragma once

#include <ATen/DimVector.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "../cpu/conditional_batch_norm.h"
#include "common.h"

#ifdef GANKERNELS_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gankernels::conditional_batch_norm {

using at::Tensor;

// ---- Arguments ----

inline Problem problem_of(const Tensor& x, bool batch_statistics, double eps, std::string_view activation,
                          double slope) {
  TORCH_CHECK(x.dim() == 4, "x: got ", x.dim(), " dimensions, expected 4: [N, C, H, W]");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), layout_of(x), dtype_of(x), activation_of(activation),
          slope,     eps,       batch_statistics};
}

// Of mean and var.
inline at::DimVector statistics_shape(const Problem& p, bool of_samples) {
  return of_samples ? at::DimVector{p.n, p.c} : at::DimVector{p.c};
}

// The problem with statistics of each sample, in the form that kernels take.
inline Problem per_sample(Problem p) {
  TORCH_CHECK(!p.labels, "labels: got a tensor, expected none with statistics of each sample");
  if (p.layout == Layout::kContiguous) {
    p.c *= p.n, p.n = 1;
  } else {
    p.per_sample = true;
  }
  return p;
}

// With x's shape and device, in the layout of the problem.
inline Tensor pixels(const char* name, const Tensor& t, const Tensor& x, const Problem& p) {
  TORCH_CHECK(t.sizes() == x.sizes(), name, ": got shape ", t.sizes(), ", expected ", x.sizes());
  TORCH_CHECK(t.device() == x.device(), name, ": got device ", t.device(), ", expected ", x.device());
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, ": got dtype ", t.scalar_type(), ", expected ",
              x.scalar_type());
  return t.contiguous(memory_format(p.layout));
}

// Contiguous, in the accumulation type.
inline Tensor small(const char* name, const Tensor& t, const Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK(t.sizes() == shape, name, ": got shape ", t.sizes(), ", expected ", shape);
  TORCH_CHECK(t.device() == x.device(), name, ": got device ", t.device(), ", expected ", x.device());
  return t.to(accumulator_of(x)).contiguous();
}

// Lets the problem's samples have the rows of gain and bias that `labels` names, where there are any. Returns what the
// problem points to from then on.
inline std::array<Tensor, 2> use_labels(Problem& p, const std::optional<Tensor>& labels_, const Tensor& x,
                                        const Tensor& gain) {
  if (!labels_) return {};
  TORCH_CHECK(gain.dim() == 2, "gain: got ", gain.dim(), " dimensions, expected 2 with labels: [classes, C]");
  TORCH_CHECK(labels_->sizes() == at::IntArrayRef{p.n}, "labels: got shape ", labels_->sizes(), ", expected ", p.n);
  TORCH_CHECK(labels_->scalar_type() == at::kLong, "labels: got dtype ", labels_->scalar_type(), ", expected int64");
  TORCH_CHECK(labels_->device() == x.device(), "labels: got device ", labels_->device(), ", expected ", x.device());
  const Tensor labels = labels_->contiguous();
  // An empty tensor has no address, but none is for no labels.
  static constexpr int64_t kNone = -1;
  p.labels = p.n > 0 ? labels.const_data_ptr<int64_t>() : &kNone;
  p.classes = gain.size(0);
  if (x.is_cuda()) return {labels};  // where asking would wait for the GPU, the kernels look after themselves
  const int64_t *begin = p.labels, *end = begin + p.n;
  const auto known = [&](int64_t label) { return label >= 0 && label < p.classes; };
  const auto* unknown = std::find_if_not(begin, end, known);
  TORCH_CHECK_INDEX(unknown == end, "labels: got ", *unknown, ", expected 0 to ", p.classes - 1);
  const Tensor order = at::empty_like(labels);
  auto* places = order.mutable_data_ptr<int64_t>();
  std::iota(places, places + p.n, int64_t(0));
  std::stable_sort(places, places + p.n, [&](int64_t a, int64_t b) { return begin[a] < begin[b]; });
  p.order = places;
  return {labels, order};
}

// For sums over the samples of each row of gain, [rows, C, ...]; no kernel writes a class that the batch has not.
inline Tensor row_sums(const Problem& p, const Tensor& gain, at::IntArrayRef shape) {
  return p.labels ? at::zeros(shape, gain.options()) : at::empty(shape, gain.options());
}

// ---- The CPU's threads ----

// Bytes of one tensor that a thread takes through all passes before the next: they stay in its second-level cache.
inline constexpr int64_t kCacheBytes = 128 << 10;

// Numbers below which a thread is not worth waking, as ATen's own kernels have it.
inline constexpr int64_t kGrain = 32768;

// What of an order runs: all of it, or what stands before or behind its middle step.
enum class Part { kAll, kSums, kApply };

// Runs sums over the tiles, terms over the channels, apply over the tiles. Contiguous channels are independent, so each
// goes through all three while it is in the cache.
template <class Sums, class Terms, class Apply>
void run(const Problem& p, Part part, Sums&& sums, Terms&& terms, Apply&& apply) {
  const bool with_sums = part != Part::kApply, with_apply = part != Part::kSums;
  const cpu::Tiling t = cpu::tiling(p);
  const int64_t pixels = std::max<int64_t>(p.n * p.l, 1), channels_grain = at::divup(kGrain, pixels);
  if (t.per_channel > 0 && p.c >= at::get_num_threads()) {
    const int64_t step = std::max<int64_t>(kCacheBytes / 4 / pixels, 1);
    at::parallel_for(0, p.c, channels_grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c += step) {
        const int64_t last = std::min(c + step, end);
        if (with_sums) {
          sums(c * t.per_channel, last * t.per_channel);
          terms(c, last);
        }
        if (with_apply) apply(c * t.per_channel, last * t.per_channel);
      }
    });
    return;
  }
  const int64_t tile_grain = t.tiles > 0 ? at::divup(kGrain * t.tiles, pixels * p.c) : 1;
  if (with_sums) {
    at::parallel_for(0, t.tiles, tile_grain, sums);
    at::parallel_for(0, p.c, channels_grain, terms);
  }
  if (with_apply) at::parallel_for(0, t.tiles, tile_grain, apply);
}

// Of `problems` problems like p; `like` is on the device and in the accumulation type.
inline Tensor partials(const Problem& p, const Tensor& like, int order, int64_t problems = 1) {
  const auto dtype = order == 0 ? at::kDouble : like.scalar_type();
  return at::empty({problems, cpu::kPartials[order], cpu::tiling(p).slots, p.c}, like.options().dtype(dtype));
}

// Calls run_order(args, partial, terms) once, or for each sample whose statistics are its own: samples are spread over
// threads where there are enough of them, and a sample is where there are not.
template <class Args, class Order>
void run_each(const Args& args, const Tensor& like, int order, Order&& run_order) {
  const Problem& p = args.problem;
  const int64_t problems = p.per_sample ? p.n : 1;
  const auto problem = [&](int64_t n) { return p.per_sample ? cpu::sample_of(args, n) : args; };
  const Tensor partial = partials(problem(0).problem, like, order, problems),
               terms = at::empty({problems, cpu::kTerms[order], p.c}, like.options());
  const auto part_of = [](const Tensor& t, int64_t n) {
    return static_cast<char*>(t.mutable_data_ptr()) + n * t.stride(0) * t.element_size();
  };
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) run_order(problem(n), part_of(partial, n), part_of(terms, n));
  };
  if (problems > 1 && problems >= at::get_num_threads()) {
    at::parallel_for(0, problems, at::divup(kGrain, std::max<int64_t>(p.c * p.l, 1)), work);
  } else {
    work(0, problems);
  }
}

// ---- The GPU's stream ----

#ifdef GANKERNELS_WITH_CUDA
// Calls launcher(workspace, stream), which returns a cudaError_t, on the device of `like`.
template <class Launcher>
void on_stream(const Problem& p, const Tensor& like, int order, Launcher&& launcher) {
  const c10::cuda::CUDAGuard guard(like.device());
  const Tensor workspace = at::empty({cuda::workspace_bytes(p, order)}, like.options().dtype(at::kByte));
  C10_CUDA_CHECK(
      static_cast<cudaError_t>(launcher(workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream().stream())));
}
#endif

}  // namespace gankernels::conditional_batch_norm

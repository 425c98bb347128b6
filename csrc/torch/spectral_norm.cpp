// Spectral normalisation for the dispatcher: checks, allocates, and hands the weights of a call to the CPU's passes or
// to the CUDA launchers.
#include "spectral_norm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../cpu/spectral_norm.h"
#include "allocate.h"
#include "common.h"

#ifdef GANKERNELS_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gankernels::spectral_norm {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

bool channels_last(const Tensor& w) {
  return !w.is_contiguous() &&
         (w.is_contiguous(at::MemoryFormat::ChannelsLast) || w.is_contiguous(at::MemoryFormat::ChannelsLast3d));
}

// In a layout whose matrix is known. The same rule stands in gankernels/ops/spectral_norm/op.py, for the fakes.
Tensor dense(const Tensor& w, int64_t dim) {
  return channels_last(w) && dim < 2 ? w : w.contiguous();
}

// The same elements in the same places as w's.
Tensor like(const char* name, size_t i, const Tensor& t, const Tensor& w, at::ScalarType dtype) {
  TORCH_CHECK(t.sizes() == w.sizes(), name, "[", i, "]: got shape ", t.sizes(), ", expected ", w.sizes());
  TORCH_CHECK(t.device() == w.device(), name, "[", i, "]: got device ", t.device(), ", expected ", w.device());
  if (t.scalar_type() == dtype && t.strides() == w.strides()) return t;
  Tensor copy = at::empty_like(w, w.options().dtype(dtype));
  copy.copy_(t);
  return copy;
}

Matrix matrix_of(const Tensor& w, int64_t dim) {
  const int64_t height = w.size(dim);
  if (channels_last(w)) {
    // Memory is [size(0), positions, size(1)].
    const int64_t positions = w.numel() / std::max<int64_t>(w.size(0) * w.size(1), 1);
    if (dim == 1) return {w.size(0) * positions, height, 1, height, 1, true};
    return {height, positions * w.size(1), 1, w.size(1), positions, false};
  }
  int64_t before = 1, behind = 1;
  for (int64_t d = 0; d < w.dim(); ++d) (d < dim ? before : behind) *= d == dim ? 1 : w.size(d);
  if (dim == 0) return {height, behind, 1, behind, 1, false};
  return {before, height * behind, std::max<int64_t>(behind, 1), 1, 1, true};
}

// Contiguous, in the accumulation type.
Tensor vector(const char* name, size_t i, const Tensor& x, const Tensor& w, int64_t size) {
  TORCH_CHECK(x.dim() == 1 && x.size(0) == size, name, "[", i, "]: got shape ", x.sizes(), ", expected [", size, "]");
  TORCH_CHECK(x.device() == w.device(), name, "[", i, "]: got device ", x.device(), ", expected ", w.device());
  return x.to(accumulator_of(w)).contiguous();
}

// u [h] and v [w] of a weight.
struct Vectors {
  Tensor u, v;
  Vectors(size_t i, const Tensor& u_, const Tensor& v_, const Tensor& w, int64_t dim) {
    TORCH_CHECK(0 <= dim && dim < w.dim() && w.numel() > 0, "weights[", i, "]: got shape ", w.sizes(), " and dim ", dim,
                ", expected a dimension of a tensor that is not empty");
    u = vector("u", i, u_, w, w.size(dim));
    v = vector("v", i, v_, w, w.numel() / w.size(dim));
  }
};

void check_counts(at::TensorList weights, std::initializer_list<std::pair<const char*, size_t>> counts) {
  TORCH_CHECK(!weights.empty(), "weights: got none, expected at least one");
  for (const auto& [name, count] : counts)
    TORCH_CHECK(count == weights.size(), name, ": got ", count, ", expected ", weights.size(), ", one for each weight");
  for (const Tensor& w : weights)
    TORCH_CHECK(w.scalar_type() == weights[0].scalar_type() && w.device() == weights[0].device(),
                "weights: got several dtypes or devices, expected one");
}

DType dtype_of_scalar(const Tensor& w, at::ScalarType dtype) {
  return dtype_of(at::empty({0}, w.options().dtype(dtype)));
}

Options options_of(const Tensor& w, at::ScalarType output, int64_t iterations, double eps) {
  const Options options = {dtype_of(w), dtype_of_scalar(w, output), iterations, eps};
  TORCH_CHECK(cpu::supported(options.weight, options.output), "out_dtype: got ", output, " for weights of ",
              w.scalar_type(), ", expected the same, or a 16-bit type for float32");
  return options;
}

template <class Layer>
void launch(const Options& options, const std::vector<Layer>& layers, const Tensor& w) {
#ifdef GANKERNELS_WITH_CUDA
  if (w.is_cuda()) {
    const c10::cuda::CUDAGuard guard(w.device());
    const int count = static_cast<int>(layers.size());
    const Tensor workspace =
        at::empty({cuda::workspace_bytes(options, layers.data(), count)}, w.options().dtype(at::kByte));
    C10_CUDA_CHECK(static_cast<cudaError_t>(cuda::launch(options, layers.data(), count, workspace.mutable_data_ptr(),
                                                         c10::cuda::getCurrentCUDAStream().stream())));
    return;
  }
#endif
  launch_cpu(options, layers);
}

void* element(const Tensor& x, size_t i) {
  return static_cast<char*>(x.mutable_data_ptr()) + i * x.element_size();
}

// ---- The ops ----

std::tuple<Tensors, Tensors, Tensors, Tensor> forward(at::TensorList weights, at::TensorList u0, at::TensorList v0,
                                                      at::IntArrayRef dims, int64_t iterations, double eps,
                                                      at::ScalarType out_dtype) {
  check_counts(weights, {{"u", u0.size()}, {"v", v0.size()}, {"dims", dims.size()}});
  const Options options = options_of(weights[0], out_dtype, iterations, eps);
  Tensors y, u, v, kept;
  Tensor sigma =
      at::empty({static_cast<int64_t>(weights.size())}, weights[0].options().dtype(accumulator_of(weights[0])));
  std::vector<Forward> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor w = dense(weights[i], dims[i]);
    const Vectors x(i, u0[i], v0[i], w, dims[i]);
    y.push_back(empty_like_pixels(w, out_dtype));
    u.push_back(at::empty_like(x.u));
    v.push_back(at::empty_like(x.v));
    layers.push_back({matrix_of(w, dims[i]), w.const_data_ptr(), x.u.const_data_ptr(), x.v.const_data_ptr(),
                      u[i].mutable_data_ptr(), v[i].mutable_data_ptr(), element(sigma, i), y[i].mutable_data_ptr()});
    kept.insert(kept.end(), {w, x.u, x.v});
  }
  launch(options, layers, weights[0]);
  return {y, u, v, sigma};
}

// dw[i] is made in dy[i] itself where `in_place` says so: each number of it depends on that number of dy and on sums
// that are complete before the first is written.
Tensors differentiate(at::TensorList dy, at::TensorList weights, at::TensorList u, at::TensorList v,
                      const Tensor& sigma_, at::IntArrayRef dims, bool in_place) {
  check_counts(weights, {{"dy", dy.size()}, {"u", u.size()}, {"v", v.size()}, {"dims", dims.size()}});
  const at::ScalarType out_dtype = dy[0].scalar_type();
  const Options options = options_of(weights[0], out_dtype, 0, 0);
  const Tensor sigma = vector("sigma", 0, sigma_, weights[0], static_cast<int64_t>(weights.size()));
  Tensors dw, kept;
  std::vector<Backward> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor w = dense(weights[i], dims[i]), dy_ = like("dy", i, dy[i], w, out_dtype);
    TORCH_CHECK(!in_place || (dy_.is_same(dy[i]) && out_dtype == w.scalar_type()), "dy[", i,
                "]: got another dtype or other strides than weights[", i, "]'s, expected the same to write to it");
    const Vectors x(i, u[i], v[i], w, dims[i]);
    dw.push_back(in_place ? dy_ : empty_like_pixels(w));
    layers.push_back({matrix_of(w, dims[i]), dy_.const_data_ptr(), w.const_data_ptr(), x.u.const_data_ptr(),
                      x.v.const_data_ptr(), element(sigma, i), dw[i].mutable_data_ptr()});
    kept.insert(kept.end(), {w, dy_, x.u, x.v});
  }
  launch(options, layers, weights[0]);
  return dw;
}

Tensors backward(at::TensorList dy, at::TensorList weights, at::TensorList u, at::TensorList v, const Tensor& sigma,
                 at::IntArrayRef dims) {
  return differentiate(dy, weights, u, v, sigma, dims, /*in_place=*/false);
}

void backward_in_place(at::TensorList dy, at::TensorList weights, at::TensorList u, at::TensorList v,
                       const Tensor& sigma, at::IntArrayRef dims) {
  differentiate(dy, weights, u, v, sigma, dims, /*in_place=*/true);
}

std::tuple<Tensors, Tensors> backward_backward(at::TensorList ddweights, at::TensorList dy, at::TensorList weights,
                                               at::TensorList u, at::TensorList v, const Tensor& sigma_,
                                               at::IntArrayRef dims) {
  check_counts(
      weights,
      {{"ddweights", ddweights.size()}, {"dy", dy.size()}, {"u", u.size()}, {"v", v.size()}, {"dims", dims.size()}});
  const at::ScalarType out_dtype = dy[0].scalar_type();
  const Options options = options_of(weights[0], out_dtype, 0, 0);
  const Tensor sigma = vector("sigma", 0, sigma_, weights[0], static_cast<int64_t>(weights.size()));
  Tensors ddy, dw, kept;
  std::vector<BackwardBackward> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor w = dense(weights[i], dims[i]), dy_ = like("dy", i, dy[i], w, out_dtype),
                 a = like("ddweights", i, ddweights[i], w, w.scalar_type());
    const Vectors x(i, u[i], v[i], w, dims[i]);
    ddy.push_back(empty_like_pixels(w, out_dtype));
    dw.push_back(empty_like_pixels(w));
    layers.push_back({matrix_of(w, dims[i]), a.const_data_ptr(), dy_.const_data_ptr(), w.const_data_ptr(),
                      x.u.const_data_ptr(), x.v.const_data_ptr(), element(sigma, i), ddy[i].mutable_data_ptr(),
                      dw[i].mutable_data_ptr()});
    kept.insert(kept.end(), {w, dy_, a, x.u, x.v});
  }
  launch(options, layers, weights[0]);
  return {ddy, dw};
}

void register_ops(torch::Library& m) {
  m.impl("spectral_norm_forward", forward);
  m.impl("spectral_norm_backward", backward);
  m.impl("spectral_norm_backward_", backward_in_place);
  m.impl("spectral_norm_backward_backward", backward_backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  register_ops(m);
}
#ifdef GANKERNELS_WITH_CUDA
TORCH_LIBRARY_IMPL(gankernels, CUDA, m) {
  register_ops(m);
}
#endif

}  // namespace gankernels::spectral_norm

// The schema of every native op: the table of contents of the native side. What each computes stands in csrc/<op>.h;
// fakes are registered in gankernels/ops/<op>/op.py, autograd formulas there or in csrc/torch/<op>_autograd.cpp.
#include <torch/library.h>

TORCH_LIBRARY(gankernels, m) {
  m.def(
      "bias_act_forward(Tensor x, Tensor? bias, str activation, float slope, float gain, float? clamp, int dim) "
      "-> Tensor y");
  m.def(
      "bias_act_backward(Tensor dy, Tensor? x, Tensor? bias, str activation, float slope, float gain, float? clamp, "
      "int dim, bool with_dbias) -> (Tensor dx, Tensor dbias)");
  m.def(
      "bias_act_backward_backward(Tensor ddx, Tensor? ddbias, Tensor? dy, Tensor? x, Tensor? bias, str activation, "
      "float slope, float gain, float? clamp, int dim, bool with_dbias) -> (Tensor ddy, Tensor dx, Tensor dbias)");
  m.def(
      "conditional_batch_norm_forward(Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor? mean, Tensor? var, "
      "float eps, str activation, float slope, bool per_sample=False) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "conditional_batch_norm_backward(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, "
      "Tensor var, bool batch_statistics, float eps, str activation, float slope) -> (Tensor dx, Tensor dgain, "
      "Tensor dbias)");
  m.def(
      "conditional_batch_norm_backward_backward(Tensor ddx, Tensor ddgain, Tensor ddbias, Tensor dy, Tensor x, "
      "Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var, bool batch_statistics, float eps, "
      "str activation, float slope) -> (Tensor ddy, Tensor dx, Tensor dgain)");
  m.def("conditional_batch_norm_statistics(Tensor x) -> (Tensor mean, Tensor var)");
  m.def(
      "conditional_batch_norm_backward_sums(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, "
      "Tensor mean, Tensor var, float eps, str activation, float slope) -> Tensor");
  m.def(
      "conditional_batch_norm_backward_apply(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, "
      "Tensor mean, Tensor var, Tensor terms, float eps, str activation, float slope) -> Tensor");
  m.def(
      "conditional_batch_norm_backward_backward_sums(Tensor ddx, Tensor dy, Tensor x, Tensor gain, Tensor bias, "
      "Tensor? labels, Tensor mean, Tensor var, float eps, str activation, float slope) -> Tensor");
  m.def(
      "conditional_batch_norm_backward_backward_apply(Tensor ddx, Tensor ddgain, Tensor ddbias, Tensor dy, Tensor x, "
      "Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var, Tensor terms, float eps, str activation, "
      "float slope) -> (Tensor ddy, Tensor dx)");
  m.def("fold_conv_weight_forward(Tensor weight, bool up, bool channels_last) -> Tensor");
  m.def("fold_conv_weight_backward(Tensor dfolded, bool up, bool channels_last) -> Tensor");
  m.def("transpose_conv_weight(Tensor weight, bool channels_last) -> Tensor");
  m.def(
      "spectral_norm_forward(Tensor[] weights, Tensor[] u, Tensor[] v, int[] dims, int n_power_iterations, float eps, "
      "ScalarType out_dtype) -> (Tensor[] y, Tensor[] u, Tensor[] v, Tensor sigma)");
  m.def(
      "spectral_norm_backward(Tensor[] dy, Tensor[] weights, Tensor[] u, Tensor[] v, Tensor sigma, int[] dims) "
      "-> Tensor[] dweights");
  m.def(
      "spectral_norm_backward_(Tensor(a!)[] dy, Tensor[] weights, Tensor[] u, Tensor[] v, Tensor sigma, int[] dims) "
      "-> ()");
  m.def(
      "spectral_norm_backward_backward(Tensor[] ddweights, Tensor[] dy, Tensor[] weights, Tensor[] u, Tensor[] v, "
      "Tensor sigma, int[] dims) -> (Tensor[] ddy, Tensor[] dweights)");
}

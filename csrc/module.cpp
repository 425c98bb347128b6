// The Python module gankernels._C. Importing it registers the ops.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "torch/convolution.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "gankernels' native ops";
  m.def(
      "cpu_isa", [] { return gankernels::cpu::name(gankernels::cpu::isa()); },
      "The instruction set that the CPU kernels run on: baseline, avx2 or avx512.");
  m.def(
      "want_weight_gradients", [](bool wanted) { gankernels::convolution::weight_gradients_wanted = wanted; },
      "Whether the backward formulas of convolutions make weight gradients from now on.");
  m.def(
      "few_products", [](int64_t count) { return gankernels::convolution::few_products.exchange(count); },
      "Up to how many products a dense convolution on a CPU goes to ATen without a plan; returns the number before.");
  const auto own = [&](const char* name, auto& kernel, const char* doc) {
    m.def(
        name,
        [&kernel](int when) {
          return static_cast<int>(kernel.exchange(static_cast<gankernels::convolution::OwnKernel>(when)));
        },
        doc);
  };
  own("own_convolutions", gankernels::convolution::own_convolutions,
      "Whether convolutions and input gradients on a CPU are our own kernel's in channels_last: 0 never, 1 by the "
      "rule, "
      "2 wherever it can; returns what held before.");
  own("own_weight_gradients", gankernels::convolution::own_weight_gradients,
      "Whether weight gradients on a CPU are our own kernel's in channels_last: 0 never, 1 by the rule, 2 wherever it "
      "can; returns what held before.");
}

// The Python module gankernels._C. Importing it registers the ops; what it exports is for `gankernels doctor`.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "gankernels' native ops";
  m.def(
      "cpu_isa", [] { return gankernels::cpu::name(gankernels::cpu::isa()); },
      "The instruction set that the CPU kernels run on: baseline, avx2 or avx512.");
}

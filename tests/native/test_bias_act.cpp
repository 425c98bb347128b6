// The CUDA kernels of bias_act, run on the host. Usage: test_bias_act DTYPE
#include "bias_act_checks.h"
#include "cuda_shim/cuda_runtime.h"

namespace {

struct Cuda {
  template <class T>
  void run(Arrays<T>& arrays, bool reversed) const {
    cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
    CHECK(bias_act::cuda::forward(arrays.forward(), nullptr, nullptr) == 0, "%s", arrays.k.name().c_str());
    Guarded<unsigned char> workspace(bias_act::cuda::workspace_bytes(arrays.problem));
    CHECK(bias_act::cuda::backward(arrays.backward(), workspace.data(), nullptr) == 0, "%s", arrays.k.name().c_str());
    CHECK(bias_act::cuda::backward_backward(arrays.backward_backward(), workspace.data(), nullptr) == 0, "%s",
          arrays.k.name().c_str());
    CHECK(workspace.intact(), "%s", arrays.k.name().c_str());
  }
};

template <class T>
void check_all() {
  check_shapes<T>(Cuda());
  // Split planes; several blocks for the channels; more slices than a block of the sums has rows.
  check_case<T>(Cuda(), {1, 2, 40000, Activation::kLeakyRelu, false, true, 0});
  check_case<T>(Cuda(), {3, 2100, 1, Activation::kLeakyRelu, false, true, 0});
  check_case<T>(Cuda(), {9000, 8, 1, Activation::kSilu, false, true, 0});
  check_special_values<T>(Cuda());
}

}  // namespace

int main(int count, char** arguments) {
  return check_dtype(count, arguments, []<class T>() { check_all<T>(); });
}

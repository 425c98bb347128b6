// The CUDA kernel of fold_conv_weight, run on the host. Usage: test_fold_conv_weight DTYPE
#include "cuda_shim/cuda_runtime.h"
#include "fold_conv_weight_checks.h"

namespace {

struct Cuda {
  void run(const fold_conv_weight::Args& args, bool reversed) const {
    cuda_shim::order = reversed ? cuda_shim::Order::kReversed : cuda_shim::Order::kForward;
    CHECK(fold_conv_weight::cuda::fold(args, nullptr) == 0, "launch");
  }
};

}  // namespace

int main(int count, char** arguments) {
  return check_dtype(count, arguments, []<class T>() { check_all<T>(Cuda()); });
}

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
  const std::string dtype = count == 2 ? arguments[1] : "";
  if (dtype == "float32") {
    check_all<float>(Cuda());
  } else if (dtype == "float64") {
    check_all<double>(Cuda());
  } else if (dtype == "bfloat16") {
    check_all<__nv_bfloat16>(Cuda());
  } else if (dtype == "float16") {
    check_all<__half>(Cuda());
  } else {
    std::fprintf(stderr, "usage: %s float32|float64|bfloat16|float16\n", arguments[0]);
    return 2;
  }
  std::printf("%s: %d failures\n", dtype.c_str(), failures);
  return failures ? 1 : 0;
}

// How the binding of spectral normalisation runs a call over all weights.
#pragma once

#include <vector>

#include "../spectral_norm.h"

namespace gankernels::spectral_norm {

// On the CPU, spread over at::parallel_for.
void launch_cpu(const Options& options, const std::vector<Forward>& layers);
void launch_cpu(const Options& options, const std::vector<Backward>& layers);
void launch_cpu(const Options& options, const std::vector<BackwardBackward>& layers);

}  // namespace gankernels::spectral_norm

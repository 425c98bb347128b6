// The instruction sets that the CPU kernels are built for, and the one that runs.
#pragma once

namespace gankernels::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

const char* name(Isa isa);

// The best set that was built, that this processor and its system have, and that GANKERNELS_CPU_ISA (baseline, avx2 or
// avx512; for tests and bug hunts) does not exclude. Decided once.
Isa isa();

}  // namespace gankernels::cpu

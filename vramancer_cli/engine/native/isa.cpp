// See isa.h. Instruction sets are numbered: 0 plain C++, 1 AVX2, 2 AVX512-VNNI.
#include "isa.h"

#include <atomic>

#include "op.h"

namespace vram {
namespace {

constexpr int64_t kCount = 3;

bool processor_has(int64_t isa) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == 2) return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == 0;
}

const Kernels* made_for(int64_t isa) {
  const Kernels* const all[kCount] = {kPlain, kAvx2, kAvx512};
  return isa >= 0 && isa < kCount && processor_has(isa) ? all[isa] : nullptr;
}

int64_t best() {
  for (int64_t isa = kCount; --isa > 0;) {
    if (made_for(isa)) return isa;
  }
  return 0;
}

std::atomic<int64_t> used{-1};

int64_t isa() {
  if (used < 0) used = best();
  return used;
}

// Raises where this processor or build lacks it. Weights are packed alike for all.
void use_isa(int64_t wanted) {
  check(made_for(wanted), "this processor or this build has no such instruction set");
  used = wanted;
}

VRAM_OP_FOR(isa, "() -> int", isa, "CompositeExplicitAutograd");
VRAM_OP_FOR(use_isa, "(int wanted) -> ()", use_isa, "CompositeExplicitAutograd");

}  // namespace

const Kernels& kernels() { return *made_for(isa()); }

}  // namespace vram

// The products for processors with AVX2.
#include "isa.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#pragma GCC target("avx2,fma,f16c")
namespace vram {
namespace {
#include "simd_avx2.h"
#include "products.h"
const Kernels kAvx2Kernels{round_rows, multiply};
}  // namespace

const Kernels* const kAvx2 = &kAvx2Kernels;
}  // namespace vram
#else
namespace vram {
const Kernels* const kAvx2 = nullptr;
}
#endif

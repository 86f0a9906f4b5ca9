// The products for processors with AVX512-VNNI.
#include "isa.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
namespace vram {
namespace {
#include "simd_avx512.h"
#include "products.h"
const Kernels kAvx512Kernels{round_rows, multiply};
}  // namespace

const Kernels* const kAvx512 = &kAvx512Kernels;
}  // namespace vram
#else
namespace vram {
const Kernels* const kAvx512 = nullptr;
}
#endif

// The kernels of rows for processors with AVX512.
#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
namespace vram {
namespace {
#include "dots_avx512.h"
#include "rows_body.h"
constexpr RowKernels kMade = kRows;
}  // namespace

const RowKernels* const kAvx512Rows = &kMade;
}  // namespace vram
#else
namespace vram {
const RowKernels* const kAvx512Rows = nullptr;
}
#endif

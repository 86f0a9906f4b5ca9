// The kernels of rows for processors with AVX2.
#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#pragma GCC target("avx2,fma")
#define VRAM_FUSED
namespace vram {
namespace {
#include "dots_plain.h"
#include "rows_body.h"
constexpr RowKernels kMade = kRows;
}  // namespace

const RowKernels* const kAvx2Rows = &kMade;
}  // namespace vram
#else
namespace vram {
const RowKernels* const kAvx2Rows = nullptr;
}
#endif

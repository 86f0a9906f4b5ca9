// The products in plain C++, for processors that no other file is for.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "isa.h"

namespace vram {
namespace {
#include "simd_plain.h"
#include "products.h"
const Kernels kPlainKernels{round_rows, multiply};
}  // namespace

const Kernels* const kPlain = &kPlainKernels;
}  // namespace vram

// The products for processors with AVX2.
#include "isa.h"

namespace vram {
const Kernels* const kAvx2 = nullptr;
}

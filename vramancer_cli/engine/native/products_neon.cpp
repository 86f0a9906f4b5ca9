// The products for ARM processors with int8 dot products.
#include "isa.h"

namespace vram {
const Kernels* const kNeon = nullptr;
}

// Which instruction set multiplies: the best that this processor has, or what a test asked for.
#pragma once

#include "product.h"

namespace vram {

// Null where the compiler cannot make them for this kind of processor.
extern const Kernels* const kAvx512;
extern const Kernels* const kAvx2;
extern const Kernels* const kPlain;

const Kernels& kernels();

}  // namespace vram

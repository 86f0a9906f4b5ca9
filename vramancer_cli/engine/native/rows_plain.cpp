// The kernels of rows in plain C++, for processors that no other file is for.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace vram {
namespace {
#include "dots_plain.h"
#include "rows_body.h"
}  // namespace

const RowKernels kPlainRows = kRows;
}  // namespace vram

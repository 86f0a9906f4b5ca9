// Compiled by `make check-native` alone, never linked: a declaration in torch_abi.h that differs from the installed torch's
// is a compile error here.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/version.h>

#include "torch_abi.h"

static_assert(vram::kTorchAbi == TORCH_ABI_VERSION, "torch_abi.h is for another torch than this");

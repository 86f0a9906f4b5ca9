// Operators: packing a quantised weight, and multiplying rows by it. All that comes from Python is checked here.
#include <algorithm>
#include <cstring>
#include <memory>

#include "isa.h"
#include "op.h"

namespace vram {
namespace {

constexpr int64_t kRowsAtOnce = 256;   // rounded before they are multiplied: 2 MiB of 8192 inputs, a core's cache
constexpr int64_t kRoundingGrain = 4;  // rows, below which another thread is not worth waking
constexpr int64_t kRowPadding = 64;    // bytes, so that neighbours in a tile do not fall into the same cache lines

int64_t blocks_of(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

void check_codes(const Tensor& codes, Type type) {
  check(codes.dim() == 2 && codes.type() == type && codes.is_dense(), "codes must be dense [outputs, inputs]");
}

// Codes int8 [N, K] as product.h has them, uint8 [N rounded up to 32, K].
Tensor pack_int8(Tensor codes) {
  check_codes(codes, Type::int8);
  const int64_t outputs = codes.size(0), inputs = codes.size(1);
  check(inputs % kInputsStep == 0, "a row must be a multiple of 32 long");
  Tensor packed = Tensor::empty({blocks_of(outputs) * kBlock, inputs}, Type::uint8);
  const int8_t* const from = codes.data<int8_t>();
  uint8_t* const to = packed.data<uint8_t>();
  parallel(blocks_of(outputs), 1, [=](int64_t begin, int64_t end) {
    for (int64_t output = begin * kBlock; output < end * kBlock; ++output) {
      uint8_t* const block = to + output / kBlock * kBlock * inputs + output % kBlock * 4;
      for (int64_t i = 0; i < inputs; ++i) {
        const int code = output < outputs ? from[output * inputs + i] : 0;
        block[i / 4 * 4 * kBlock + i % 4] = static_cast<uint8_t>(code + kInt8Zero);
      }
    }
  });
  return packed;
}

// Memory for some rounded rows.
class Rounded {
 public:
  Rounded(int64_t rows, int64_t inputs, int64_t group)
      : codes_(new int8_t[rows * (inputs + kRowPadding)]),
        scales_(new float[rows * (inputs / group)]),
        sums_(new int32_t[rows * (inputs / group)]),
        all_{codes_.get(), scales_.get(), sums_.get(), inputs + kRowPadding, group, inputs} {}

  const Activations& all() const { return all_; }

 private:
  std::unique_ptr<int8_t[]> codes_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<int32_t[]> sums_;
  Activations all_;
};

bool is_float(Type type) { return type == Type::float32 || type == Type::bfloat16 || type == Type::float16; }

void check_rows(const Tensor& rows, int64_t inputs) {
  check(rows.dim() == 2 && is_float(rows.type()) && rows.is_dense(), "rows must be dense [rows, inputs] of floats");
  check(rows.size(1) == inputs, "rows are not as long as the weight's");
}

// `weight`: a Product without its rows and result.
Tensor multiplied(Product weight, const Tensor& rows, int64_t group) {
  const int64_t count = rows.size(0), inputs = rows.size(1), width = rows.type() == Type::float32 ? 4 : 2;
  Tensor result = Tensor::empty({count, weight.outputs}, rows.type());
  if (count == 0) return result;
  const Kernels& isa = kernels();
  const Rounded rounded(std::min(count, kRowsAtOnce), inputs, group);
  weight.rows = rounded.all();
  weight.type = rows.type();
  for (int64_t first = 0; first < count; first += kRowsAtOnce) {
    const int64_t some = std::min(kRowsAtOnce, count - first);
    const char* const from = rows.data<char>() + first * inputs * width;
    parallel(some, kRoundingGrain, [&](int64_t begin, int64_t end) {
      isa.round_rows(from, weight.type, weight.rows, begin, end);
    });
    weight.row_count = some;
    weight.result = result.data<char>() + first * weight.outputs * width;
    parallel(blocks_of(weight.outputs), 1, [&](int64_t begin, int64_t end) { isa.multiply(weight, begin, end); });
  }
  return result;
}

// Rows [M, K] of floats by pack_int8's weight and its scales, float32 [N]: [M, N] in the rows' dtype.
Tensor linear_int8(Tensor rows, Tensor packed, Tensor scales) {
  check(packed.dim() == 2 && packed.type() == Type::uint8 && packed.is_dense(), "the weight must come of pack_int8");
  check(scales.dim() == 1 && scales.type() == Type::float32 && scales.is_dense(), "scales must be float32 [outputs]");
  check(packed.size(0) == blocks_of(scales.numel()) * kBlock, "there must be a scale for each output");
  check(packed.size(1) > 0 && packed.size(1) % kInputsStep == 0, "the weight must come of pack_int8");
  check_rows(rows, packed.size(1));
  Product weight{};
  weight.held = Held::int8_rows;
  weight.packed = packed.data<uint8_t>();
  weight.scales = scales.data<float>();
  weight.outputs = scales.numel();
  return multiplied(weight, rows, packed.size(1));
}

VRAM_OP(pack_int8, "(Tensor codes) -> Tensor", pack_int8);
VRAM_OP(linear_int8, "(Tensor rows, Tensor packed, Tensor scales) -> Tensor", linear_int8);

}  // namespace
}  // namespace vram

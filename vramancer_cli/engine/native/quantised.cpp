// Operators: packing a quantised weight, and multiplying rows by it. All that comes from Python is checked here.
#include <algorithm>
#include <cstring>
#include <memory>

#include "isa.h"
#include "op.h"

namespace vram {
namespace {

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

// What a group's codes look like: from(output, input) gives one; those of outputs that do not exist are 0.
template <class From>
void pack_group_int8(uint8_t* to, int64_t group, const From& from) {
  for (int64_t i = 0; i < group; ++i) {
    for (int64_t o = 0; o < kBlock; ++o) to[(i / 4 * kBlock + o) * 4 + i % 4] = static_cast<uint8_t>(from(o, i));
  }
}

template <class From>
void pack_group_int4(uint8_t* to, int64_t group, const From& from) {
  for (int64_t i = 0; i < group; ++i) {
    if (i % 8 >= 4) continue;  // goes with the one four before
    for (int64_t o = 0; o < kBlock; ++o) {
      to[(i / 8 * kBlock + o) * 4 + i % 4] = static_cast<uint8_t>(from(o, i) | from(o, i + 4) << 4);
    }
  }
}

// Calls each(block, group, its bytes) for a weight held in groups, on all threads.
template <class Each>
Tensor packed_groups(Held held, int64_t outputs, int64_t inputs, int64_t group, const Each& each) {
  const int64_t blocks = blocks_of(outputs), groups = inputs / group, bytes = group_bytes(held, group);
  Tensor packed = Tensor::empty({blocks, groups, bytes}, Type::uint8);
  uint8_t* const to = packed.data<uint8_t>();
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t g = 0; g < groups; ++g) each(block, g, to + (block * groups + g) * bytes);
    }
  });
  return packed;
}

void check_group(int64_t inputs, int64_t groups) {
  check(groups > 0 && inputs % groups == 0, "groups must divide a row");
  check(inputs / groups % kInputsStep == 0 && inputs > 0, "a group must be a multiple of 32 long");
}

// Codes int8 [N, K] and scales float32 [N, groups]: uint8 [blocks, groups, bytes of a group].
Tensor pack_int8_groups(Tensor codes, Tensor scales) {
  check_codes(codes, Type::int8);
  check(scales.dim() == 2 && scales.type() == Type::float32 && scales.is_dense(), "scales: dense float32 [N, groups]");
  const int64_t outputs = codes.size(0), inputs = codes.size(1), groups = scales.size(1);
  check(scales.size(0) == outputs, "there must be scales for each output");
  check_group(inputs, groups);
  const int64_t group = inputs / groups;
  const int8_t* const from = codes.data<int8_t>();
  const float* const scale = scales.data<float>();
  return packed_groups(Held::int8_groups, outputs, inputs, group, [=](int64_t block, int64_t g, uint8_t* to) {
    const int64_t first = block * kBlock;
    pack_group_int8(to, group, [=](int64_t o, int64_t i) {
      return first + o < outputs ? from[(first + o) * inputs + g * group + i] + kInt8Zero : 0;
    });
    float* const scaling = reinterpret_cast<float*>(to + kBlock * group);
    for (int64_t o = 0; o < kBlock; ++o) scaling[o] = first + o < outputs ? scale[(first + o) * groups + g] : 0.0f;
  });
}

// Codes uint8 [N, K / 2], the even one of two in the upper half; scales and offsets [groups, N, 2], bfloat16 or float16.
Tensor pack_int4(Tensor codes, Tensor scaling) {
  check_codes(codes, Type::uint8);
  const bool is_half = scaling.type() == Type::bfloat16 || scaling.type() == Type::float16;
  check(scaling.dim() == 3 && is_half && scaling.is_dense(), "scales and offsets: dense [groups, N, 2] of 16 bits each");
  const int64_t outputs = codes.size(0), inputs = 2 * codes.size(1), groups = scaling.size(0);
  check(scaling.size(1) == outputs && scaling.size(2) == 2, "there must be scales and offsets for each output");
  check_group(inputs, groups);
  const int64_t group = inputs / groups;
  const uint8_t* const from = codes.data<uint8_t>();
  const uint16_t* const halves = scaling.data<uint16_t>();
  return packed_groups(Held::int4_bfloat16, outputs, inputs, group, [=](int64_t block, int64_t g, uint8_t* to) {
    const int64_t first = block * kBlock;
    pack_group_int4(to, group, [=](int64_t o, int64_t i) {
      if (first + o >= outputs) return 0;
      const int64_t place = (first + o) * inputs + g * group + i;
      return place % 2 ? from[place / 2] & 15 : from[place / 2] >> 4;
    });
    uint16_t* const to_halves = reinterpret_cast<uint16_t*>(to + kBlock * group / 2);
    for (int64_t o = 0; o < kBlock; ++o) {
      const uint16_t* const both = halves + (g * outputs + std::min(first + o, outputs - 1)) * 2;
      to_halves[o] = both[0];
      to_halves[kBlock + o] = both[1];
    }
  });
}

// Memory for some rounded rows.
class Rounded {
 public:
  Rounded(int64_t rows, int64_t inputs, int64_t group, int zero)
      : codes_(new int8_t[rows * (inputs + kRowPadding)]),
        scales_(new float[rows * (inputs / group)]),
        starts_(new int32_t[rows * (inputs / group)]),
        shifts_(new float[rows * (inputs / group)]),
        all_{codes_.get(), scales_.get(), starts_.get(), shifts_.get(), inputs + kRowPadding, group, inputs, zero} {}

  const Activations& all() const { return all_; }

 private:
  std::unique_ptr<int8_t[]> codes_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<int32_t[]> starts_;
  std::unique_ptr<float[]> shifts_;
  Activations all_;
};

bool is_float(Type type) { return type == Type::float32 || type == Type::bfloat16 || type == Type::float16; }

void check_rows(const Tensor& rows, int64_t inputs) {
  check(rows.dim() == 2 && is_float(rows.type()) && rows.is_dense(), "rows must be dense [rows, inputs] of floats");
  check(rows.size(1) == inputs, "rows are not as long as the weight's");
}

// `weight`: a Product without its rows and result.
Tensor multiplied(Product weight, const Tensor& rows, int64_t group, int zero = kInt8Zero) {
  const int64_t count = rows.size(0), inputs = rows.size(1), width = rows.type() == Type::float32 ? 4 : 2;
  Tensor result = Tensor::empty({count, weight.outputs}, rows.type());
  if (count == 0) return result;
  const Kernels& isa = kernels();
  const Rounded rounded(std::min(count, kRowsAtOnce), inputs, group, zero);
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

Product of_groups(const Tensor& packed, const Tensor& rows, Held held, int64_t outputs, int64_t group) {
  check(packed.dim() == 3 && packed.type() == Type::uint8 && packed.is_dense(), "the weight must be packed in groups");
  check(group > 0 && group % kInputsStep == 0 && outputs > 0, "a group must be a multiple of 32 long");
  check(packed.size(0) == blocks_of(outputs) && packed.size(2) == group_bytes(held, group), "the weight is another size");
  check_rows(rows, packed.size(1) * group);
  Product weight{};
  weight.held = held;
  weight.packed = packed.data<uint8_t>();
  weight.outputs = outputs;
  return weight;
}

// Rows [M, K] of floats by pack_int8_groups' weight: [M, outputs] in the rows' dtype.
Tensor linear_int8_groups(Tensor rows, Tensor packed, int64_t outputs, int64_t group) {
  return multiplied(of_groups(packed, rows, Held::int8_groups, outputs, group), rows, group);
}

// The same by pack_int4's. `zero`: the code from 0 to 15 that means the offset itself.
Tensor linear_int4(Tensor rows, Tensor packed, int64_t outputs, int64_t group, int64_t zero, bool is_float16) {
  check(zero >= 0 && zero < 16, "a code of four bits is below 16");
  const Held held = is_float16 ? Held::int4_float16 : Held::int4_bfloat16;
  return multiplied(of_groups(packed, rows, held, outputs, group), rows, group, static_cast<int>(zero));
}

VRAM_OP(pack_int8, "(Tensor codes) -> Tensor", pack_int8);
VRAM_OP(linear_int8, "(Tensor rows, Tensor packed, Tensor scales) -> Tensor", linear_int8);
VRAM_OP(pack_int8_groups, "(Tensor codes, Tensor scales) -> Tensor", pack_int8_groups);
VRAM_OP(linear_int8_groups, "(Tensor rows, Tensor packed, int outputs, int group) -> Tensor", linear_int8_groups);
VRAM_OP(pack_int4, "(Tensor codes, Tensor scales_and_offsets) -> Tensor", pack_int4);
VRAM_OP(linear_int4, "(Tensor rows, Tensor packed, int outputs, int group, int zero, bool is_float16) -> Tensor", linear_int4);

}  // namespace
}  // namespace vram

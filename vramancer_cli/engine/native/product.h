// What a product by a quantised weight is, and the two functions that every instruction set has for it.
//
// Weights are packed in one way for all instruction sets: outputs in blocks of 32, and within a block four inputs of one
// output after the other, so that one 32-bit lane adds up four products of one output (VPDPBUSD and its like). Codes are
// unsigned, with a zero point. Activations are rounded to int8, and the sum of their codes takes the zero point out:
//   sum (code - zero) * a  =  sum code * a  -  zero * sum a
// Sums within a group are whole numbers, exact in any order; groups are added in their order, whatever the row count: a row
// gives the same bits alone and among others.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace vram {

inline constexpr int64_t kBlock = 32;        // outputs kept together
inline constexpr int64_t kRowsAtOnce = 256;    // rounded and multiplied before others are: 2 MiB of 8192 inputs
inline constexpr int64_t kInputsStep = 32;   // every row is a multiple of it, and so is every group
inline constexpr int kInt8Zero = 128;
inline constexpr float kInt8Limit = 127.0f;
inline constexpr float kSmallest = 1e-20f;   // scale of a row of zeros: quant.SMALLEST

// Rows rounded to int8: `group` inputs share a scale. Each row's codes lie `stride` bytes behind the last row's.
struct Activations {
  int8_t* codes;
  float* scales;   // [rows, inputs / group]
  int32_t* starts; // [rows, inputs / group]: - zero * sum of the codes, what sums of products begin with
  float* shifts;   // [rows, inputs / group]: sum of the codes * scale, which offsets are multiplied by
  int64_t stride, group, inputs;
  int zero;        // the weight's; of int8, kInt8Zero

  int64_t groups() const { return inputs / group; }
};

// What scales the codes of a packed weight.
enum class Held {
  int8_rows,       // codes alone; a float32 scale for each output, in `scales`
  int8_groups,     // per group: 32 codes for each input, 32 float32 scales
  int4_bfloat16,   // per group: two inputs in a byte (the first four of eight below), 32 scales, 32 offsets
  int4_float16,
};

// Bytes of one group of one block, and of a whole packed weight.
inline int64_t group_bytes(Held held, int64_t group) {
  const bool is_int8 = held == Held::int8_rows || held == Held::int8_groups;
  const int64_t codes = is_int8 ? kBlock * group : kBlock * group / 2;
  return codes + (held == Held::int8_rows ? 0 : kBlock * 4);
}

struct Product {
  Held held;
  const uint8_t* packed;
  const float* scales;   // of int8_rows
  Activations rows;
  int64_t row_count, outputs;
  void* result;          // [row_count, outputs] of `type`
  Type type;
};

struct Kernels {
  // Rounds rows [begin, end) of `type`, dense [.., inputs], into `to`.
  void (*round_rows)(const void* rows, Type type, const Activations& to, int64_t begin, int64_t end);
  // Writes the results of blocks [begin, end) of outputs, for all rows.
  void (*multiply)(const Product& product, int64_t begin, int64_t end);
};

}  // namespace vram

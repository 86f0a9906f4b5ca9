// What is done to each row of a step between its products, as every instruction set has it.
//
// A row's results depend on nothing but the row: each is computed in float32, in the same order wherever it stands, and
// rounded once.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace vram {

// into = (offset + weight) * row / sqrt(mean(row^2) + eps). Where there is `more`, rows += more first, in place.
struct Norm {
  Type type;
  void* rows;
  const void *more, *weight;
  void* into;
  int64_t width;
  float eps, offset;
};

// into [.., width] = activation(gate) * up; `both` has rows of gate, then up. 0: silu, 1: gelu with tanh.
struct Gate {
  Type type;
  const void* both;
  void* into;
  int64_t width, activation;
};

// Queries and keys at the beginning of each row of `width`: normed where there is a weight, then turned by the angles in
// cos and sin [.., rotated].
struct Turn {
  Type type;
  void* rows;
  const void *cos, *sin, *query_weight, *key_weight;
  int64_t width, heads, kv_heads, size, rotated;
  float eps, offset;
};

// Tokens over keys [slots, kv_heads, key_size] and values [slots, kv_heads, value_size] in blocks of `block_tokens` slots.
// Token t has query [heads, key_size] at query + t * token_step, its head h at + h * head_step. It sees positions
// [places[3 t + 1], places[3 t + 2]) of the blocks tables[places[3 t] * table_blocks...].
struct Paged {
  Type type;
  const void *query, *keys, *values;
  void* into;
  const int32_t *tables, *places;
  int64_t heads, kv_heads, key_size, value_size, token_step, head_step, table_blocks, block_tokens;
  float scaling, softcap;

  int64_t group() const { return heads / kv_heads; }
};

inline constexpr int64_t kMostSize = 1024;  // of a key or a value

struct RowKernels {
  // Rows, or for `attend` pairs of a token and a key head, [begin, end).
  void (*norm)(const Norm&, int64_t begin, int64_t end);
  void (*gate)(const Gate&, int64_t begin, int64_t end);
  void (*turn)(const Turn&, int64_t begin, int64_t end);
  void (*attend)(const Paged&, int64_t begin, int64_t end);
};

// Null where the compiler cannot make them for this kind of processor.
extern const RowKernels* const kAvx512Rows;
extern const RowKernels* const kAvx2Rows;
extern const RowKernels kPlainRows;

const RowKernels& row_kernels();

}  // namespace vram

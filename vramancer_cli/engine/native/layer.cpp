// Operators for what a decoder layer does between its products: norms, gates, rotary positions.
#include "op.h"
#include "rows.h"

namespace vram {
namespace {

constexpr int64_t kGrainElements = 1 << 16;  // below that, waking a thread takes longer than the work

int64_t rows_at_once(int64_t width) { return width < kGrainElements ? kGrainElements / width : 1; }

void check_rows(const Tensor& rows, const char* what) {
  check(rows.dim() == 2 && rows.is_dense() && rows.size(1) > 0, what);
  check(rows.type() == Type::float32 || rows.type() == Type::bfloat16, "rows must be float32 or bfloat16");
}

const void* checked_weight(const Tensor& weight, int64_t width, Type type) {
  check(weight.is_dense() && weight.numel() == width && weight.type() == type, "a norm's weight does not fit its rows");
  return weight.data<void>();
}

Tensor normed(const Tensor& rows, const void* more, const Tensor& weight, double eps, double offset) {
  const int64_t count = rows.size(0), width = rows.size(1);
  const void* scales = checked_weight(weight, width, rows.type());
  Tensor result = Tensor::empty({count, width}, rows.type());
  const Norm norm{rows.type(), rows.data<void>(), more, scales, result.data<void>(), width,
                  static_cast<float>(eps), static_cast<float>(offset)};
  const auto work = row_kernels().norm;
  parallel(count, rows_at_once(width), [&](int64_t begin, int64_t end) { work(norm, begin, end); });
  return result;
}

// (offset + weight) * row / sqrt(mean(row^2) + eps): Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
Tensor rms_norm(Tensor rows, Tensor weight, double eps, double offset) {
  check_rows(rows, "rms_norm takes dense rows [T, width]");
  return normed(rows, nullptr, weight, eps, offset);
}

// Adds to the residual in place, then as rms_norm of it.
Tensor add_rms_norm(Tensor residual, Tensor more, Tensor weight, double eps, double offset) {
  check_rows(residual, "add_rms_norm takes dense rows [T, width]");
  check_rows(more, "add_rms_norm adds dense rows [T, width]");
  const bool alike = more.size(0) == residual.size(0) && more.size(1) == residual.size(1);
  check(alike && more.type() == residual.type(), "rows to add do not fit");
  return normed(residual, more.data<void>(), weight, eps, offset);
}

// Rows of gate and up, side by side, to activation(gate) * up: Shazeer, "GLU Variants Improve Transformer" (2020).
Tensor gated(Tensor both, int64_t activation) {
  check_rows(both, "gated takes dense rows [T, 2 width]");
  check(both.size(1) % 2 == 0 && (activation == 0 || activation == 1), "gated knows silu (0) and gelu with tanh (1)");
  const int64_t count = both.size(0), width = both.size(1) / 2;
  Tensor product = Tensor::empty({count, width}, both.type());
  const Gate gate{both.type(), both.data<void>(), product.data<void>(), width, activation};
  const auto work = row_kernels().gate;
  parallel(count, rows_at_once(8 * width), [&](int64_t begin, int64_t end) { work(gate, begin, end); });
  return product;
}

// Queries and keys at the beginning of each row [heads + kv_heads + ..., size], normed where a weight has elements, then
// turned by cos and sin [T, rotated] (the first and the second half of `rotated` go together), in place.
void rotate(
    Tensor rows, Tensor cos, Tensor sin, Tensor query_weight, Tensor key_weight, int64_t heads, int64_t kv_heads,
    int64_t size, double eps, double offset) {
  check_rows(rows, "rotate takes dense rows");
  check_rows(cos, "rotate takes dense cosines");
  check_rows(sin, "rotate takes dense sines");
  const int64_t count = rows.size(0), width = rows.size(1), rotated = cos.size(1);
  check(heads > 0 && kv_heads > 0 && size > 0 && (heads + kv_heads) * size <= width, "rotate: heads beyond the row");
  check(rotated % 2 == 0 && rotated <= size && sin.size(1) == rotated, "rotate: positions wider than a head");
  check(cos.size(0) == count && sin.size(0) == count, "rotate: a position for each row");
  check(cos.type() == rows.type() && sin.type() == rows.type(), "rotate: one dtype for all");
  const auto weight_of = [&](const Tensor& weight) {
    return weight.numel() ? checked_weight(weight, size, rows.type()) : nullptr;
  };
  const Turn turn{rows.type(), rows.data<void>(), cos.data<void>(), sin.data<void>(), weight_of(query_weight),
                  weight_of(key_weight), width, heads, kv_heads, size, rotated,
                  static_cast<float>(eps), static_cast<float>(offset)};
  const auto work = row_kernels().turn;
  parallel(count, rows_at_once(8 * width), [&](int64_t begin, int64_t end) { work(turn, begin, end); });
}

}  // namespace

VRAM_OP(rms_norm, "(Tensor rows, Tensor weight, float eps, float offset) -> Tensor", rms_norm);
VRAM_OP(
    add_rms_norm, "(Tensor(a!) residual, Tensor more, Tensor weight, float eps, float offset) -> Tensor", add_rms_norm);
VRAM_OP(gated, "(Tensor both, int activation) -> Tensor", gated);
VRAM_OP(
    rotate,
    "(Tensor(a!) rows, Tensor cos, Tensor sin, Tensor query_weight, Tensor key_weight, int heads, int kv_heads, int "
    "size, float eps, float offset) -> ()",
    rotate);

}  // namespace vram

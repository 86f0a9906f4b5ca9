// What a decoder layer does between its matrix products: norms, gates, rotary positions. Row by row, in float32, each
// result rounded once, so that no row feels another.
#include "numbers.h"
#include "op.h"

namespace vram {
namespace {

constexpr int64_t kGrainElements = 1 << 16;  // below that, waking a thread takes longer than the work

int64_t rows_at_once(int64_t width) { return width < kGrainElements ? kGrainElements / width : 1; }

template <class T>
float scale_of(const T* row, int64_t width, float eps) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += widened(row[i]) * widened(row[i]);
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

template <class T>
void normalise(const T* row, const T* weight, T* into, int64_t width, float eps, float offset) {
  const float scale = scale_of(row, width, eps);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(widened(row[i]) * scale * (widened(weight[i]) + offset), into[i]);
}

template <class T>
void add(T* row, const T* more, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(widened(row[i]) + widened(more[i]), row[i]);
}

// Calls work(T{}) with the C++ type of `type`.
template <class Work>
void with_type(Type type, const Work& work) {
  if (type == Type::float32) return work(float{});
  check(type == Type::bfloat16, "rows must be float32 or bfloat16");
  work(Bf16{});
}

void check_rows(const Tensor& rows, const char* what) {
  check(rows.dim() == 2 && rows.is_dense(), what);
}

void check_weight(const Tensor& weight, int64_t width, Type type) {
  check(weight.is_dense() && weight.numel() == width && weight.type() == type, "a norm's weight does not fit its rows");
}

// (offset + weight) * row / sqrt(mean(row^2) + eps): Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
Tensor rms_norm(Tensor rows, Tensor weight, double eps, double offset) {
  check_rows(rows, "rms_norm takes dense rows [T, width]");
  const int64_t count = rows.size(0), width = rows.size(1);
  check_weight(weight, width, rows.type());
  Tensor normed = Tensor::empty({count, width}, rows.type());
  with_type(rows.type(), [&](auto kind) {
    using T = decltype(kind);
    const T *from = rows.data<T>(), *scales = weight.data<T>();
    T* into = normed.data<T>();
    parallel(count, rows_at_once(width), [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        normalise(from + row * width, scales, into + row * width, width, eps, offset);
    });
  });
  return normed;
}

// Adds to the residual in place, then as rms_norm of it.
Tensor add_rms_norm(Tensor residual, Tensor more, Tensor weight, double eps, double offset) {
  check_rows(residual, "add_rms_norm takes dense rows [T, width]");
  check_rows(more, "add_rms_norm adds dense rows [T, width]");
  const int64_t count = residual.size(0), width = residual.size(1);
  check(more.size(0) == count && more.size(1) == width && more.type() == residual.type(), "rows to add do not fit");
  check_weight(weight, width, residual.type());
  Tensor normed = Tensor::empty({count, width}, residual.type());
  with_type(residual.type(), [&](auto kind) {
    using T = decltype(kind);
    T *kept = residual.data<T>(), *into = normed.data<T>();
    const T *added = more.data<T>(), *scales = weight.data<T>();
    parallel(count, rows_at_once(width), [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        add(kept + row * width, added + row * width, width);
        normalise(kept + row * width, scales, into + row * width, width, eps, offset);
      }
    });
  });
  return normed;
}

float silu(float x) { return x / (1.0f + exponential(-x)); }

// Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), with tanh; tanh(u) = 1 - 2 / (e^2u + 1).
float gelu_tanh(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x * (1.0f - 1.0f / (exponential(2.0f * u) + 1.0f));
}

template <class T, float (*activation)(float)>
void gate_row(const T* gate, const T* up, T* into, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(activation(widened(gate[i])) * widened(up[i]), into[i]);
}

// Rows of gate and up, side by side, to activation(gate) * up: Shazeer, "GLU Variants Improve Transformer" (2020).
Tensor gated(Tensor both, int64_t activation) {
  check_rows(both, "gated takes dense rows [T, 2 width]");
  check(both.size(1) % 2 == 0 && (activation == 0 || activation == 1), "gated knows silu (0) and gelu with tanh (1)");
  const int64_t count = both.size(0), width = both.size(1) / 2;
  Tensor product = Tensor::empty({count, width}, both.type());
  with_type(both.type(), [&](auto kind) {
    using T = decltype(kind);
    const T* from = both.data<T>();
    T* into = product.data<T>();
    const auto gate = activation == 0 ? gate_row<T, silu> : gate_row<T, gelu_tanh>;
    parallel(count, rows_at_once(8 * width), [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        gate(from + 2 * row * width, from + (2 * row + 1) * width, into + row * width, width);
    });
  });
  return product;
}

// Su et al., "RoFormer" (2021), on the two halves of the first `width` elements; the rest stays.
template <class T>
void turn(T* head, const T* cos, const T* sin, int64_t width) {
  const int64_t half = width / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = widened(head[i]), b = widened(head[half + i]);
    narrow(a * widened(cos[i]) - b * widened(sin[i]), head[i]);
    narrow(b * widened(cos[half + i]) + a * widened(sin[half + i]), head[half + i]);
  }
}

struct Heads {
  int64_t count, size, rotated;
  float eps, offset;
};

template <class T>
void prepare(T* first, const T* weight, const T* cos, const T* sin, const Heads& heads) {
  for (int64_t head = 0; head < heads.count; ++head) {
    T* at = first + head * heads.size;
    if (weight) normalise(at, weight, at, heads.size, heads.eps, heads.offset);
    turn(at, cos, sin, heads.rotated);
  }
}

// Queries and keys at the beginning of each row [heads + kv_heads + ..., size], normed where there is a weight, then
// turned by cos and sin [T, rotated], in place.
void rotate(
    Tensor rows, Tensor cos, Tensor sin, Tensor query_weight, Tensor key_weight, int64_t heads, int64_t kv_heads,
    int64_t size, double eps, double offset) {
  check_rows(rows, "rotate takes dense rows");
  const int64_t count = rows.size(0), width = rows.size(1);
  check(heads > 0 && kv_heads > 0 && size > 0 && (heads + kv_heads) * size <= width, "rotate: heads beyond the row");
  check_rows(cos, "rotate takes dense cosines");
  check_rows(sin, "rotate takes dense sines");
  const int64_t rotated = cos.size(1);
  check(rotated % 2 == 0 && rotated <= size && sin.size(1) == rotated, "rotate: positions wider than a head");
  check(cos.size(0) == count && sin.size(0) == count, "rotate: a position for each row");
  check(cos.type() == rows.type() && sin.type() == rows.type(), "rotate: one dtype for all");
  for (const Tensor* weight : {&query_weight, &key_weight})
    if (weight->numel()) check_weight(*weight, size, rows.type());
  with_type(rows.type(), [&](auto kind) {
    using T = decltype(kind);
    T* at = rows.data<T>();
    const T *c = cos.data<T>(), *s = sin.data<T>();
    const T* q = query_weight.numel() ? query_weight.data<T>() : nullptr;
    const T* k = key_weight.numel() ? key_weight.data<T>() : nullptr;
    const float e = eps, o = offset;
    parallel(count, rows_at_once(8 * width), [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* first = at + row * width;
        prepare(first, q, c + row * rotated, s + row * rotated, Heads{heads, size, rotated, e, o});
        prepare(first + heads * size, k, c + row * rotated, s + row * rotated, Heads{kv_heads, size, rotated, e, o});
      }
    });
  });
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

// a * b + c, rounded twice or, where the processor has it, once.
inline float fused(float a, float b, float c) {
#ifdef VRAM_FUSED
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The products of four queries [4, size] with one key, one by one. `Size`: known when compiled, or 0. Included as
// rows_body.h is.
template <int64_t Size>
void four_dots(const float* queries, const float* key, int64_t given_size, float* dots) {
  const int64_t size = Size ? Size : given_size;
  for (int64_t query = 0; query < 4; ++query, queries += size) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum = fused(queries[i], key[i], sum);
    dots[query] = sum;
  }
}

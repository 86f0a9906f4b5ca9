// See dots_plain.h.
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Four sums of 16 are added up together, so that each costs a quarter of the shuffles.
inline void add_up(__m512 a, __m512 b, __m512 c, __m512 d, float* sums) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

template <int64_t Size>
void four_dots(const float* queries, const float* key, int64_t given_size, float* dots) {
  const int64_t size = Size ? Size : given_size;
  __m512 sums[4] = {};
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 some = size - i < 16 ? static_cast<__mmask16>((1u << (size - i)) - 1) : static_cast<__mmask16>(~0);
    const __m512 part = _mm512_maskz_loadu_ps(some, key + i);
    for (int64_t query = 0; query < 4; ++query)
      sums[query] = _mm512_fmadd_ps(part, _mm512_maskz_loadu_ps(some, queries + query * size + i), sums[query]);
  }
  add_up(sums[0], sums[1], sums[2], sums[3], dots);
}

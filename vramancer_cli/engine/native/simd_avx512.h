// Vectors of 16 for processors with AVX512 and its int8 dot product (VNNI). Included within a namespace, behind the pragma.
struct Simd {
  using Floats = __m512;
  using Ints = __m512i;
  using Codes = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kWidth = 2;    // vectors of outputs in a tile
  static constexpr int kRows = 12;    // of activations in a tile: 24 sums, and 8 registers for the rest
  static constexpr int kGroupRows = 10;  // where the sums are scaled group after group
  static constexpr int kInt8Start = kInt8Zero;

  static Ints ints(int32_t value) { return _mm512_set1_epi32(value); }
  static Floats floats(float value) { return _mm512_set1_ps(value); }
  static Ints load_codes(const uint8_t* at) { return _mm512_loadu_si512(at); }
  static Ints low(Ints pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi8(15)); }
  static Ints high(Ints pairs) { return _mm512_and_si512(_mm512_srli_epi16(pairs, 4), _mm512_set1_epi8(15)); }
  static Ints four(const int8_t* at) {
    int32_t found;
    std::memcpy(&found, at, 4);
    return _mm512_set1_epi32(found);
  }
  static Ints dot_int8(Ints sums, Ints codes, Ints rows) { return _mm512_dpbusd_epi32(sums, codes, rows); }
  static Ints dot_int4(Ints sums, Ints codes, Ints rows) { return _mm512_dpbusd_epi32(sums, codes, rows); }

  static Ints load_ints(const int32_t* at) { return _mm512_loadu_si512(at); }
  static void store_ints(int32_t* at, Ints values) { _mm512_storeu_si512(at, values); }
  static Floats to_floats(Ints values) { return _mm512_cvtepi32_ps(values); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }

  static Floats load(const float* at) { return _mm512_loadu_ps(at); }
  static Floats load_bfloat16(const uint16_t* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(at)), 16));
  }
  static Floats load_float16(const uint16_t* at) { return _mm512_cvtph_ps(load_halves(at)); }
  static void store(float* at, Floats values) { _mm512_storeu_ps(at, values); }
  static void store_bfloat16(uint16_t* at, Floats values) {
    const Ints bits = _mm512_castps_si512(values);
    const Ints odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), ints(1));
    const Ints rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, ints(0x7fff))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    store_halves(at, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, ints(0x7fc0))));
  }
  static void store_float16(uint16_t* at, Floats values) {
    store_halves(at, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // As whole numbers, so that NaN is above infinity and is not lost.
  static Ints magnitude_bits(Floats values) {
    return _mm512_and_si512(_mm512_castps_si512(values), ints(0x7fffffff));
  }
  static Ints larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static int32_t largest(Ints values) { return _mm512_reduce_max_epi32(values); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static int32_t sum(Ints values) { return _mm512_reduce_add_epi32(values); }
  // To the nearest, ties to even; 16 codes stored, and given back. What is no number becomes -128.
  static Ints store_rounded(int8_t* at, Floats values) {
    const Ints whole = _mm512_cvtps_epi32(values);
    const __m128i codes = _mm512_cvtsepi32_epi8(whole);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), codes);
    return _mm512_cvtepi8_epi32(codes);
  }

 private:
  static __m256i load_halves(const uint16_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void store_halves(uint16_t* at, __m256i values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), values);
  }
};

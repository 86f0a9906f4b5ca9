// Vectors of 8 for processors with AVX2, which multiplies bytes into 16 bits. Included within a namespace, behind the pragma.
struct Simd {
  using Floats = __m256;
  using Ints = __m256i;
  using Codes = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kWidth = 2;
  static constexpr int kRows = 4;  // in a tile: 8 sums, and 8 registers for the rest
  static constexpr int kGroupRows = 4;
  static constexpr int kInt8Start = 0;  // dot_int8 makes codes signed: unsigned ones would not fit into 16 bits

  static Ints ints(int32_t value) { return _mm256_set1_epi32(value); }
  static Floats floats(float value) { return _mm256_set1_ps(value); }
  static Codes load_codes(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static Codes low(Codes pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi8(15)); }
  static Codes high(Codes pairs) { return _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15)); }
  static Ints four(const int8_t* at) {
    int32_t found;
    std::memcpy(&found, at, 4);
    return _mm256_set1_epi32(found);
  }
  // Magnitudes up to 128 by rows up to 127, two of them: below 2^15.
  static Ints dot_int8(Ints sums, Codes codes, Ints rows) {
    const Codes code = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return dot_int4(sums, _mm256_abs_epi8(code), _mm256_sign_epi8(rows, code));
  }
  static Ints dot_int4(Ints sums, Codes codes, Ints rows) {
    return add(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, rows), _mm256_set1_epi16(1)));
  }

  static Ints load_ints(const int32_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void store_ints(int32_t* at, Ints values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), values); }
  static Floats to_floats(Ints values) { return _mm256_cvtepi32_ps(values); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }

  static Floats load(const float* at) { return _mm256_loadu_ps(at); }
  static Floats load_bfloat16(const uint16_t* at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(at)), 16));
  }
  static Floats load_float16(const uint16_t* at) { return _mm256_cvtph_ps(load_halves(at)); }
  static void store(float* at, Floats values) { _mm256_storeu_ps(at, values); }
  static void store_bfloat16(uint16_t* at, Floats values) {
    const Ints bits = _mm256_castps_si256(values);
    const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), ints(1));
    const Ints rounded = _mm256_srli_epi32(add(bits, add(odd, ints(0x7fff))), 16);
    const Ints is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const Ints all = _mm256_blendv_epi8(rounded, ints(0x7fc0), is_nan);
    store_halves(at, _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
  }
  static void store_float16(uint16_t* at, Floats values) {
    store_halves(at, _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static Ints magnitude_bits(Floats values) { return _mm256_and_si256(_mm256_castps_si256(values), ints(0x7fffffff)); }
  static Ints larger(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
  static int32_t largest(Ints values) {
    int32_t all[kLanes];
    store_ints(all, values);
    return *std::max_element(all, all + kLanes);
  }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static int32_t sum(Ints values) {
    int32_t all[kLanes];
    store_ints(all, values);
    return std::accumulate(all, all + kLanes, 0);
  }
  static Ints store_rounded(int8_t* at, Floats values) {
    const Ints whole = _mm256_cvtps_epi32(values);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    const __m128i codes = _mm_packs_epi16(halves, halves);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), codes);
    return _mm256_cvtepi8_epi32(codes);
  }

 private:
  static __m128i load_halves(const uint16_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
  static void store_halves(uint16_t* at, __m128i values) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), values); }
};

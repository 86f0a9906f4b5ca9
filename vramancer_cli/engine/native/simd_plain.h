// "Vectors" of 8 in plain C++, for any processor; the compiler makes of them what it can. Included within a namespace.
struct Simd {
  static constexpr int kLanes = 8;
  static constexpr int kWidth = 1;
  static constexpr int kRows = 4;
  static constexpr int kGroupRows = 4;
  static constexpr int kInt8Start = kInt8Zero;
  struct Floats { float v[kLanes]; };
  struct Ints { int32_t v[kLanes]; };
  struct Codes { uint8_t v[4 * kLanes]; };

  static Ints ints(int32_t value) { return each<Ints>([=](int) { return value; }); }
  static Floats floats(float value) { return each<Floats>([=](int) { return value; }); }
  static Codes load_codes(const uint8_t* at) { return copied<Codes>(at); }
  static Codes low(Codes pairs) {
    for (auto& code : pairs.v) code &= 15;
    return pairs;
  }
  static Codes high(Codes pairs) {
    for (auto& code : pairs.v) code >>= 4;
    return pairs;
  }
  static const int8_t* four(const int8_t* at) { return at; }
  static Ints dot_int8(const Ints& sums, const Codes& codes, const int8_t* rows) {
    return each<Ints>([&](int i) {
      const uint8_t* c = codes.v + 4 * i;
      return sums.v[i] + c[0] * rows[0] + c[1] * rows[1] + c[2] * rows[2] + c[3] * rows[3];
    });
  }
  static Ints dot_int4(const Ints& sums, const Codes& codes, const int8_t* rows) { return dot_int8(sums, codes, rows); }

  static Ints load_ints(const int32_t* at) { return copied<Ints>(at); }
  static void store_ints(int32_t* at, const Ints& values) { std::memcpy(at, values.v, sizeof values); }
  static Floats to_floats(const Ints& values) { return each<Floats>([&](int i) { return float(values.v[i]); }); }
  static Floats multiply(const Floats& a, const Floats& b) { return each<Floats>([&](int i) { return a.v[i] * b.v[i]; }); }
  static Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });  // rounded twice: no fused one is sure to be fast
  }
  static Floats divide(const Floats& a, const Floats& b) { return each<Floats>([&](int i) { return a.v[i] / b.v[i]; }); }

  static Floats load(const float* at) { return copied<Floats>(at); }
  static Floats load_bfloat16(const uint16_t* at) {
    return each<Floats>([&](int i) { return from_bits(uint32_t{at[i]} << 16); });
  }
  static Floats load_float16(const uint16_t* at) { return each<Floats>([&](int i) { return from_half(at[i]); }); }
  static void store(float* at, const Floats& values) { std::memcpy(at, values.v, sizeof values); }
  static void store_bfloat16(uint16_t* at, const Floats& values) {
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t bits = to_bits(values.v[i]);
      at[i] = values.v[i] != values.v[i] ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
  }
  static void store_float16(uint16_t* at, const Floats& values) {
    for (int i = 0; i < kLanes; ++i) at[i] = to_half(values.v[i]);
  }

  static Ints magnitude_bits(const Floats& values) {
    return each<Ints>([&](int i) { return static_cast<int32_t>(to_bits(values.v[i]) & 0x7fffffff); });
  }
  static Ints larger(const Ints& a, const Ints& b) { return each<Ints>([&](int i) { return std::max(a.v[i], b.v[i]); }); }
  static int32_t largest(const Ints& values) { return *std::max_element(values.v, values.v + kLanes); }
  static Ints add(const Ints& a, const Ints& b) { return each<Ints>([&](int i) { return a.v[i] + b.v[i]; }); }
  static int32_t sum(const Ints& values) { return std::accumulate(values.v, values.v + kLanes, 0); }
  static Ints store_rounded(int8_t* at, const Floats& values) {
    return each<Ints>([&](int i) {
      const float whole = std::nearbyint(values.v[i]);
      return int32_t{at[i] = whole >= -128.0f && whole <= 127.0f ? static_cast<int8_t>(whole) : int8_t{-128}};
    });
  }

 private:
  template <class To, class Each>
  static To each(Each value) {
    To to;
    for (int i = 0; i < kLanes; ++i) to.v[i] = value(i);
    return to;
  }
  template <class To>
  static To copied(const void* at) {
    To to;
    std::memcpy(&to, at, sizeof to);
    return to;
  }
  static float from_bits(uint32_t bits) { return copied<float>(&bits); }
  static uint32_t to_bits(float value) { return copied<uint32_t>(&value); }

  // IEEE 754 binary16. Multiplying by a power of two moves the exponent, and makes subnormal numbers normal.
  static float from_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    const float value = rest >= 0x7c00 ? from_bits(0x7f800000u | rest << 13) : from_bits(rest << 13) * 0x1p112f;
    return from_bits(to_bits(value) | sign);
  }
  static uint16_t to_half(float value) {
    const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7e00 | sign;
    if (rest >= 0x477ff000) return 0x7c00 | sign;  // from halfway between the largest and what would come next
    if (rest < 0x38800000) {  // becomes subnormal: the sum's lowest bit is worth 2^-24
      return static_cast<uint16_t>((to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f)) | sign);
    }
    return static_cast<uint16_t>(((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13) | sign);
  }
};

// The kernels of rows.h, for the instruction set that is in force where this is included, in an anonymous namespace.
// Needs `fused` and `four_dots` (see dots_plain.h). Loops are written so that compilers make vectors of them.

struct Bf16 {
  uint16_t bits;
};

inline float widened(float value) { return value; }
inline float widened(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// To the nearest, ties to even; what is not a number stays so.
inline void narrow(float value, float& into) { into = value; }
inline void narrow(float value, Bf16& into) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  into.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
}

// e^x without a branch, within 2e-7 of it: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (the one of Cephes' expf).
// What is not a number stays so.
inline float exponential(float given) {
  const float x = given < -87.0f ? -87.0f : (given > 88.0f ? 88.0f : given);
  const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds: 1.5 * 2^23
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = fused(p, r, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  p = fused(p, r * r, r) + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// --- norms, gates, positions -----------------------------------------------------------------------------------------

template <class T>
void normalise(const T* row, const T* weight, T* into, int64_t width, float eps, float offset) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum = fused(widened(row[i]), widened(row[i]), sum);
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(widened(row[i]) * scale * (widened(weight[i]) + offset), into[i]);
}

template <class T>
void norm_rows(const Norm& norm, int64_t begin, int64_t end) {
  for (int64_t place = begin * norm.width; place < end * norm.width; place += norm.width) {
    T* row = static_cast<T*>(norm.rows) + place;
    if (norm.more) {
      const T* more = static_cast<const T*>(norm.more) + place;
#pragma omp simd
      for (int64_t i = 0; i < norm.width; ++i) narrow(widened(row[i]) + widened(more[i]), row[i]);
    }
    const T* weight = static_cast<const T*>(norm.weight);
    normalise(row, weight, static_cast<T*>(norm.into) + place, norm.width, norm.eps, norm.offset);
  }
}

inline float silu(float x) { return x / (1.0f + exponential(-x)); }

// Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), with tanh; (1 + tanh(u)) / 2 = 1 / (1 + e^-2u).
inline float gelu_tanh(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(-2.0f * u));
}

template <class T>
void gate_rows(const Gate& gate, int64_t begin, int64_t end) {
  const int64_t width = gate.width;
  for (int64_t row = begin; row < end; ++row) {
    const T *opening = static_cast<const T*>(gate.both) + 2 * row * width, *passing = opening + width;
    T* into = static_cast<T*>(gate.into) + row * width;
    if (gate.activation) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) narrow(gelu_tanh(widened(opening[i])) * widened(passing[i]), into[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) narrow(silu(widened(opening[i])) * widened(passing[i]), into[i]);
    }
  }
}

// Su et al., "RoFormer" (2021), on the two halves of the first `width` elements; the rest stays.
template <class T>
void turn_head(T* head, const T* cos, const T* sin, int64_t width) {
  const int64_t half = width / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = widened(head[i]), b = widened(head[half + i]);
    narrow(a * widened(cos[i]) - b * widened(sin[i]), head[i]);
    narrow(b * widened(cos[half + i]) + a * widened(sin[half + i]), head[half + i]);
  }
}

template <class T>
void turn_rows(const Turn& turn, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* head = static_cast<T*>(turn.rows) + row * turn.width;
    const T* cos = static_cast<const T*>(turn.cos) + row * turn.rotated;
    const T* sin = static_cast<const T*>(turn.sin) + row * turn.rotated;
    for (int64_t h = 0; h < turn.heads + turn.kv_heads; ++h, head += turn.size) {
      const void* weight = h < turn.heads ? turn.query_weight : turn.key_weight;
      if (weight) normalise(head, static_cast<const T*>(weight), head, turn.size, turn.eps, turn.offset);
      turn_head(head, cos, sin, turn.rotated);
    }
  }
}

// --- attention -------------------------------------------------------------------------------------------------------

constexpr int64_t kTileTokens = 64;  // cut by position

// All that one thread needs for the query heads that share a key head, made once for many of them. `tile`: keys or values
// of one tile as float32 [kTileTokens, size]; by query head: its scores in the tile, the largest score so far, the sum
// of its shares, and of the values that these stand for. Query heads are filled up to a multiple of four.
struct Scratch {
  std::vector<float> queries, tile, scores, largest, total, values;

  explicit Scratch(const Paged& paged)
      : queries(heads(paged) * paged.key_size), tile(kTileTokens * std::max(paged.key_size, paged.value_size)),
        scores(heads(paged) * kTileTokens), largest(heads(paged)), total(heads(paged)),
        values(heads(paged) * paged.value_size) {}

  static int64_t heads(const Paged& paged) { return (paged.group() + 3) / 4 * 4; }

  void begin() {
    std::fill(largest.begin(), largest.end(), -std::numeric_limits<float>::infinity());
    std::fill(total.begin(), total.end(), 0.0f);
    std::fill(values.begin(), values.end(), 0.0f);
  }
};

// A token's way through the cache: its sequence's blocks, and the positions [first, end) among them that it sees.
struct Way {
  const int32_t* blocks;
  int64_t block_tokens, first, end;
};

// The vectors of one head at positions [from, to), one after the other; `step` elements lie between two slots.
template <int64_t Size, class T>
void widen(const T* vectors, int64_t given_size, int64_t step, const Way& way, int64_t from, int64_t to, float* into) {
  const int64_t size = Size ? Size : given_size;
  int64_t block = from / way.block_tokens, offset = from % way.block_tokens;
  for (int64_t position = from; position < to; ++block, offset = 0) {
    const T* stored = vectors + (way.blocks[block] * way.block_tokens + offset) * step;
    for (; offset < way.block_tokens && position < to; ++offset, ++position, stored += step, into += size) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) into[i] = widened(stored[i]);
    }
  }
}

// Of four queries with all keys of a tile.
template <int64_t Size>
void score(const float* queries, const float* keys, int64_t count, int64_t given_size, const Paged& by, float* scores) {
  const int64_t size = Size ? Size : given_size;
  for (int64_t place = 0; place < count; ++place, keys += size) {
    float dots[4];
    four_dots<Size>(queries, keys, size, dots);
    for (int64_t query = 0; query < 4; ++query) scores[query * kTileTokens + place] = dots[query] * by.scaling;
  }
  if (by.softcap > 0)
    for (int64_t i = 0; i < 4 * kTileTokens; ++i) scores[i] = by.softcap * std::tanh(scores[i] / by.softcap);
}

// Scores of one query head become shares of a softmax over all positions so far. Gives the factor by which what was
// summed before them shrinks. Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
inline float share(float* scores, int64_t count, float& largest, float& total) {
  const float before = largest;
  float most = before;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < count; ++i) most = scores[i] > most ? scores[i] : most;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = exponential(scores[i] - most);
    sum += scores[i];
  }
  const float down = total > 0 ? exponential(before - most) : 0.0f;
  total = total * down + sum;
  largest = most;
  return down;
}

template <int64_t Size>
void gather(const float* shares, const float* values, int64_t count, int64_t given_size, float down, float* into) {
  const int64_t size = Size ? Size : given_size;
  float sums[Size ? Size : kMostSize];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) sums[i] = into[i] * down;
  for (int64_t place = 0; place < count; ++place, values += size) {
    const float weight = shares[place];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) sums[i] = fused(weight, values[i], sums[i]);
  }
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) into[i] = sums[i];
}

// `scratch.queries` in, `scratch.values` out, not yet divided by their totals. `Size`: of keys and values, or 0: any.
template <int64_t Size, class T>
void attend_tiles(const Paged& paged, const T* keys, const T* values, const Way& way, Scratch& scratch) {
  const int64_t group = paged.group(), key_step = paged.kv_heads * paged.key_size;
  const int64_t value_step = paged.kv_heads * paged.value_size;
  float* tile = scratch.tile.data();
  for (int64_t from = way.first; from < way.end; from = (from / kTileTokens + 1) * kTileTokens) {
    const int64_t to = std::min(way.end, (from / kTileTokens + 1) * kTileTokens), count = to - from;
    widen<Size>(keys, paged.key_size, key_step, way, from, to, tile);
    for (int64_t g = 0; g < group; g += 4) {
      const float* queries = &scratch.queries[g * paged.key_size];
      score<Size>(queries, tile, count, paged.key_size, paged, &scratch.scores[g * kTileTokens]);
    }
    widen<Size>(values, paged.value_size, value_step, way, from, to, tile);
    for (int64_t g = 0; g < group; ++g) {
      float* scores = &scratch.scores[g * kTileTokens];
      const float down = share(scores, count, scratch.largest[g], scratch.total[g]);
      gather<Size>(scores, tile, count, paged.value_size, down, &scratch.values[g * paged.value_size]);
    }
  }
}

// The query heads of one token that share the key head `head`.
template <int64_t Size, class T>
void attend_head(const Paged& paged, int64_t token, int64_t head, Scratch& scratch) {
  const int64_t group = paged.group();
  const T* query = static_cast<const T*>(paged.query) + token * paged.token_step + head * group * paged.head_step;
  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < paged.key_size; ++i)
      scratch.queries[g * paged.key_size + i] = widened(query[g * paged.head_step + i]);
  scratch.begin();
  const int32_t* place = paged.places + 3 * token;
  const Way way{paged.tables + place[0] * paged.table_blocks, paged.block_tokens, place[1], place[2]};
  const T* keys = static_cast<const T*>(paged.keys) + head * paged.key_size;
  const T* values = static_cast<const T*>(paged.values) + head * paged.value_size;
  attend_tiles<Size>(paged, keys, values, way, scratch);
  T* into = static_cast<T*>(paged.into) + (token * paged.heads + head * group) * paged.value_size;
  for (int64_t g = 0; g < group; ++g) {
    const float whole = 1.0f / scratch.total[g];
    for (int64_t i = 0; i < paged.value_size; ++i, ++into)
      narrow(scratch.values[g * paged.value_size + i] * whole, *into);
  }
}

template <int64_t Size, class T>
void attend_heads(const Paged& paged, int64_t begin, int64_t end) {
  Scratch scratch(paged);
  for (int64_t item = begin; item < end; ++item)
    attend_head<Size, T>(paged, item / paged.kv_heads, item % paged.kv_heads, scratch);
}

// --- of either type --------------------------------------------------------------------------------------------------

// For the sizes that most models have, loops of known length.
template <class T>
void attend_sized(const Paged& paged, int64_t begin, int64_t end) {
  const int64_t size = paged.key_size == paged.value_size ? paged.key_size : 0;
  if (size == 64) return attend_heads<64, T>(paged, begin, end);
  if (size == 128) return attend_heads<128, T>(paged, begin, end);
  attend_heads<0, T>(paged, begin, end);
}

template <class Work, void (*of_floats)(const Work&, int64_t, int64_t), void (*of_halves)(const Work&, int64_t, int64_t)>
void typed(const Work& work, int64_t begin, int64_t end) {
  (work.type == Type::float32 ? of_floats : of_halves)(work, begin, end);
}

constexpr RowKernels kRows{
    typed<Norm, norm_rows<float>, norm_rows<Bf16>>, typed<Gate, gate_rows<float>, gate_rows<Bf16>>,
    typed<Turn, turn_rows<float>, turn_rows<Bf16>>, typed<Paged, attend_sized<float>, attend_sized<Bf16>>};

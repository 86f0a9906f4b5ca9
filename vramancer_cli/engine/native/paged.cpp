// Attention of single tokens over keys and values in blocks: all rows of a step in one call, whatever their sequences.
//
// A token's result depends on its query, on its keys and values, and on their positions alone: tiles are cut by position,
// and every row is added up in the same order wherever its blocks lie and whoever its neighbours are.
#include <algorithm>
#include <limits>
#include <vector>

#include "numbers.h"
#include "op.h"

namespace vram {
namespace {

constexpr int64_t kTileTokens = 64;
constexpr int64_t kMostSize = 1024;
constexpr int64_t kGrainElements = 1 << 17;  // products of keys and queries, below which no other thread is woken

// One layer's keys, or its values: [slots, kv_heads, size].
template <class T>
struct Cache {
  const T* first;
  int64_t kv_heads, size;

  const T* at(int64_t slot, int64_t head) const { return first + (slot * kv_heads + head) * size; }
};

// A token's way through the cache: its sequence's blocks, and the positions [first, end) among them that it sees.
struct Way {
  const int32_t* blocks;
  int64_t block_tokens, first, end;

  int64_t slot(int64_t position) const {
    return blocks[position / block_tokens] * block_tokens + position % block_tokens;
  }
};

struct Scoring {
  float scaling, softcap;
};

// All that one thread needs for the query heads that share a key head, made once for many of them. `tile`: keys or values
// of one tile as float32 [kTileTokens, size]; by query head: its scores in the tile, the largest score so far, the sum
// of its shares, and of the values that these stand for.
struct Scratch {
  std::vector<float> queries, tile, scores, largest, total, values;

  Scratch(int64_t group, int64_t key_size, int64_t value_size)
      : queries(group * key_size), tile(kTileTokens * std::max(key_size, value_size)), scores(group * kTileTokens),
        largest(group), total(group), values(group * value_size) {}

  void begin() {
    std::fill(largest.begin(), largest.end(), -std::numeric_limits<float>::infinity());
    std::fill(total.begin(), total.end(), 0.0f);
    std::fill(values.begin(), values.end(), 0.0f);
  }
};

// The vectors of positions [from, to), one after the other. `Size`: known when compiled, or 0.
template <int64_t Size, class T>
void widen(const Cache<T>& cache, const Way& way, int64_t head, int64_t from, int64_t to, float* into) {
  const int64_t size = Size ? Size : cache.size;
  for (int64_t position = from; position < to; ++position, into += size) {
    const T* stored = cache.at(way.slot(position), head);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) into[i] = widened(stored[i]);
  }
}

template <int64_t Size>
void score(const float* query, const float* keys, int64_t count, int64_t given_size, const Scoring& by, float* scores) {
  const int64_t size = Size ? Size : given_size;
  for (int64_t place = 0; place < count; ++place, keys += size) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum += query[i] * keys[i];
    scores[place] = sum * by.scaling;
  }
  if (by.softcap > 0)
    for (int64_t place = 0; place < count; ++place) scores[place] = by.softcap * std::tanh(scores[place] / by.softcap);
}

// Scores of one query head become shares of a softmax over all positions so far. Gives the factor by which what was
// summed before them shrinks.
float share(float* scores, int64_t count, float& largest, float& total) {
  const float before = largest;
  float most = before;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < count; ++i) most = std::max(most, scores[i]);
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
    for (int64_t i = 0; i < size; ++i) sums[i] += weight * values[i];
  }
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) into[i] = sums[i];
}

// The query heads that share the key head `head`, of one token: `scratch.queries` [group, size] in, values [group, size]
// out, not yet divided by their totals.
template <int64_t Size, class T>
void attend(
    const Cache<T>& keys, const Cache<T>& values, const Way& way, int64_t head, int64_t group, const Scoring& by,
    Scratch& scratch) {
  float* tile = scratch.tile.data();
  for (int64_t from = way.first; from < way.end; from = (from / kTileTokens + 1) * kTileTokens) {
    const int64_t to = std::min(way.end, (from / kTileTokens + 1) * kTileTokens), count = to - from;
    widen<Size>(keys, way, head, from, to, tile);
    for (int64_t g = 0; g < group; ++g)
      score<Size>(&scratch.queries[g * keys.size], tile, count, keys.size, by, &scratch.scores[g * kTileTokens]);
    widen<Size>(values, way, head, from, to, tile);
    for (int64_t g = 0; g < group; ++g) {
      float* scores = &scratch.scores[g * kTileTokens];
      const float down = share(scores, count, scratch.largest[g], scratch.total[g]);
      gather<Size>(scores, tile, count, values.size, down, &scratch.values[g * values.size]);
    }
  }
}

template <class T>
using Attend = void (*)(
    const Cache<T>&, const Cache<T>&, const Way&, int64_t, int64_t, const Scoring&, Scratch&);

// For the sizes that most models have, loops of known length.
template <class T>
Attend<T> attend_for(int64_t key_size, int64_t value_size) {
  if (key_size == value_size && key_size == 64) return attend<64, T>;
  if (key_size == value_size && key_size == 128) return attend<128, T>;
  return attend<0, T>;
}

struct Shapes {
  int64_t tokens, heads, kv_heads, key_size, value_size, slots;
};

Shapes checked(const Tensor& query, const Tensor& keys, const Tensor& values) {
  check(query.dim() == 3 && keys.dim() == 3 && values.dim() == 3, "paged attention takes three dimensions each");
  check(query.stride(2) == 1 && keys.is_dense() && values.is_dense(), "paged attention takes dense keys and values");
  check(query.type() == keys.type() && keys.type() == values.type(), "paged attention takes one dtype");
  const Shapes shapes{query.size(0), query.size(1), keys.size(1), keys.size(2), values.size(2), keys.size(0)};
  check(shapes.kv_heads > 0 && shapes.heads % shapes.kv_heads == 0, "query heads must be shared out evenly");
  check(query.size(2) == shapes.key_size && values.size(1) == shapes.kv_heads, "heads of keys and values differ");
  check(values.size(0) == shapes.slots, "as many slots for values as for keys");
  check(shapes.key_size > 0 && shapes.key_size <= kMostSize, "a key is too long");
  check(shapes.value_size > 0 && shapes.value_size <= kMostSize, "a value is too long");
  return shapes;
}

// Raises for a place outside the tables or the cache: what is read afterwards is there.
void check_places(const Tensor& tables, const Tensor& places, const Shapes& shapes, int64_t block_tokens) {
  check(tables.dim() == 2 && tables.is_dense() && tables.type() == Type::int32, "tables are int32 [rows, blocks]");
  check(places.dim() == 2 && places.is_dense() && places.type() == Type::int32, "places are int32 [T, 3]");
  check(places.size(0) == shapes.tokens && places.size(1) == 3, "three numbers for each token");
  check(block_tokens > 0, "a block has tokens");
  const int64_t rows = tables.size(0), blocks = tables.size(1), count = shapes.slots / block_tokens;
  const int32_t* place = places.data<int32_t>();
  for (int64_t token = 0; token < shapes.tokens; ++token, place += 3) {
    check(place[0] >= 0 && place[0] < rows, "a token of no table");
    check(place[1] >= 0 && place[1] < place[2] && place[2] <= blocks * block_tokens, "positions beyond a table");
  }
  const int32_t* block = tables.data<int32_t>();
  for (int64_t i = 0; i < rows * blocks; ++i) check(block[i] >= 0 && block[i] < count, "a block that is not there");
}

template <class T>
Tensor attended(
    const Shapes& shapes, const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& tables,
    const Tensor& places, int64_t block_tokens, const Scoring& by) {
  Tensor result = Tensor::empty({shapes.tokens, shapes.heads, shapes.value_size}, query.type());
  const T* queries = query.data<T>();
  T* into = result.data<T>();
  const Cache<T> kept{keys.data<T>(), shapes.kv_heads, shapes.key_size};
  const Cache<T> held{values.data<T>(), shapes.kv_heads, shapes.value_size};
  const int64_t token_step = query.stride(0), head_step = query.stride(1), blocks = tables.size(1);
  const int64_t group = shapes.heads / shapes.kv_heads;
  const int32_t *table = tables.data<int32_t>(), *place = places.data<int32_t>();
  int64_t most = 1;
  for (int64_t token = 0; token < shapes.tokens; ++token)
    most = std::max<int64_t>(most, place[3 * token + 2] - place[3 * token + 1]);
  const int64_t piece = most * group * (shapes.key_size + shapes.value_size);
  const auto attend_one = attend_for<T>(shapes.key_size, shapes.value_size);
  parallel(shapes.tokens * shapes.kv_heads, std::max<int64_t>(1, kGrainElements / piece), [&](int64_t begin, int64_t end) {
    Scratch scratch(group, shapes.key_size, shapes.value_size);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t token = item / shapes.kv_heads, head = item % shapes.kv_heads;
      const T* own = queries + token * token_step + head * group * head_step;
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < shapes.key_size; ++i)
          scratch.queries[g * shapes.key_size + i] = widened(own[g * head_step + i]);
      scratch.begin();
      const int32_t* seen = place + 3 * token;
      attend_one(kept, held, Way{table + seen[0] * blocks, block_tokens, seen[1], seen[2]}, head, group, by, scratch);
      T* out = into + (token * shapes.heads + head * group) * shapes.value_size;
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < shapes.value_size; ++i, ++out)
          narrow(scratch.values[g * shapes.value_size + i] / scratch.total[g], *out);
    }
  });
  return result;
}

// query [T, heads, size] (any strides of tokens and heads); keys [slots, kv_heads, size] and values alike, dense;
// places [T, 3]: the table row of each token, and the first and the end of the positions that it sees.
// Gives [T, heads, value size]. softcap 0: none. After Milakov and Gimelshein, "Online normalizer calculation for
// softmax" (2018).
Tensor attend_paged(
    Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor places, int64_t block_tokens, double scaling,
    double softcap) {
  const Shapes shapes = checked(query, keys, values);
  check_places(tables, places, shapes, block_tokens);
  const Scoring by{static_cast<float>(scaling), static_cast<float>(softcap)};
  if (query.type() == Type::float32)
    return attended<float>(shapes, query, keys, values, tables, places, block_tokens, by);
  check(query.type() == Type::bfloat16, "paged attention takes float32 or bfloat16");
  return attended<Bf16>(shapes, query, keys, values, tables, places, block_tokens, by);
}

}  // namespace

VRAM_OP(
    attend_paged,
    "(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor places, int block_tokens, float scaling, float "
    "softcap) -> Tensor",
    attend_paged);

}  // namespace vram

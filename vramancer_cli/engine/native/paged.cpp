// The operator for attention of single tokens over keys and values in blocks: all rows of a step in one call, whatever
// their sequences. Tiles are cut by position, so a token's result does not depend on where its blocks lie.
#include <algorithm>

#include "op.h"
#include "rows.h"

namespace vram {
namespace {

constexpr int64_t kGrainProducts = 1 << 17;  // of keys and queries, below which no other thread is woken

void check_cache(const Tensor& query, const Tensor& keys, const Tensor& values) {
  check(query.dim() == 3 && keys.dim() == 3 && values.dim() == 3, "paged attention takes three dimensions each");
  check(query.stride(2) == 1 && keys.is_dense() && values.is_dense(), "paged attention takes dense keys and values");
  check(query.type() == keys.type() && keys.type() == values.type(), "paged attention takes one dtype");
  check(query.type() == Type::float32 || query.type() == Type::bfloat16, "paged attention takes float32 or bfloat16");
  check(keys.size(1) > 0 && query.size(1) % keys.size(1) == 0, "query heads must be shared out evenly");
  check(query.size(2) == keys.size(2) && values.size(1) == keys.size(1), "heads of keys and values differ");
  check(values.size(0) == keys.size(0), "as many slots for values as for keys");
  check(keys.size(2) > 0 && keys.size(2) <= kMostSize, "a key is too long");
  check(values.size(2) > 0 && values.size(2) <= kMostSize, "a value is too long");
}

// Raises for a place outside the tables or the cache: what is read afterwards is there.
void check_places(const Tensor& tables, const Tensor& places, int64_t tokens, int64_t slots, int64_t block_tokens) {
  check(tables.dim() == 2 && tables.is_dense() && tables.type() == Type::int32, "tables are int32 [rows, blocks]");
  check(places.dim() == 2 && places.is_dense() && places.type() == Type::int32, "places are int32 [T, 3]");
  check(places.size(0) == tokens && places.size(1) == 3, "three numbers for each token");
  check(block_tokens > 0, "a block has tokens");
  const int64_t rows = tables.size(0), blocks = tables.size(1), count = slots / block_tokens;
  const int32_t* place = places.data<int32_t>();
  for (int64_t token = 0; token < tokens; ++token, place += 3) {
    check(place[0] >= 0 && place[0] < rows, "a token of no table");
    check(place[1] >= 0 && place[1] < place[2] && place[2] <= blocks * block_tokens, "positions beyond a table");
  }
  const int32_t* block = tables.data<int32_t>();
  check(std::all_of(block, block + rows * blocks, [=](int32_t id) { return id >= 0 && id < count; }),
        "a block that is not there");
}

int64_t most_seen(const int32_t* places, int64_t tokens) {
  int64_t most = 1;
  for (int64_t token = 0; token < tokens; ++token)
    most = std::max<int64_t>(most, places[3 * token + 2] - places[3 * token + 1]);
  return most;
}

// query [T, heads, size] (any strides of tokens and heads); keys [slots, kv_heads, size] and values alike, dense;
// places [T, 3]: the row of `tables` of each token, and the first and the end of the positions that it sees.
// Gives [T, heads, value size]. softcap 0: none.
Tensor attend_paged(
    Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor places, int64_t block_tokens, double scaling,
    double softcap) {
  check_cache(query, keys, values);
  const int64_t tokens = query.size(0);
  check_places(tables, places, tokens, keys.size(0), block_tokens);
  Tensor result = Tensor::empty({tokens, query.size(1), values.size(2)}, query.type());
  const Paged paged{query.type(), query.data<void>(), keys.data<void>(), values.data<void>(), result.data<void>(),
                    tables.data<int32_t>(), places.data<int32_t>(), query.size(1), keys.size(1), keys.size(2),
                    values.size(2), query.stride(0), query.stride(1), tables.size(1), block_tokens,
                    static_cast<float>(scaling), static_cast<float>(softcap)};
  const int64_t products = most_seen(paged.places, tokens) * paged.group() * (paged.key_size + paged.value_size);
  const auto work = row_kernels().attend;
  parallel(tokens * paged.kv_heads, std::max<int64_t>(1, kGrainProducts / products),
           [&](int64_t begin, int64_t end) { work(paged, begin, end); });
  return result;
}

}  // namespace

VRAM_OP(
    attend_paged,
    "(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor places, int block_tokens, float scaling, float "
    "softcap) -> Tensor",
    attend_paged);

}  // namespace vram

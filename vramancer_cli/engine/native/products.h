// The products themselves, written once over `Simd`, which the file that includes this has defined in the same namespace.
//
// A tile is `rows` rows by `kTile` outputs, its sums in registers. Row count and tile never change what one result is made
// of, nor in which order.

constexpr int64_t kPartInputs = 1024;  // 32 KiB of int8 codes
constexpr int kTile = Simd::kLanes * Simd::kWidth;
using Floats = Simd::Floats;
using Ints = Simd::Ints;
using Codes = Simd::Codes;

// --- Activations ---------------------------------------------------------------------------------------------------

template <Type type>
Floats load_row(const void* rows, int64_t place) {
  if constexpr (type == Type::bfloat16) return Simd::load_bfloat16(static_cast<const uint16_t*>(rows) + place);
  else if constexpr (type == Type::float16) return Simd::load_float16(static_cast<const uint16_t*>(rows) + place);
  else return Simd::load(static_cast<const float*>(rows) + place);
}

template <Type type>
void round_group(const void* rows, int64_t place, int64_t count, int8_t* codes, const Activations& to, int64_t group) {
  Ints most = Simd::ints(0);
  for (int64_t i = 0; i < count; i += Simd::kLanes) {
    most = Simd::larger(most, Simd::magnitude_bits(load_row<type>(rows, place + i)));
  }
  const int32_t bits = Simd::largest(most);
  float largest;
  std::memcpy(&largest, &bits, 4);
  largest /= kInt8Limit;
  const float scale = largest < kSmallest ? kSmallest : largest;  // NaN stays
  const Floats divisor = Simd::floats(scale);
  Ints sums = Simd::ints(0);
  for (int64_t i = 0; i < count; i += Simd::kLanes) {
    sums = Simd::add(sums, Simd::store_rounded(codes + i, Simd::divide(load_row<type>(rows, place + i), divisor)));
  }
  to.scales[group] = scale;
  const int32_t sum = Simd::sum(sums);
  to.starts[group] = -(to.zero == kInt8Zero ? Simd::kInt8Start : to.zero) * sum;
  to.shifts[group] = scale * static_cast<float>(sum);
}

template <Type type>
void round_typed(const void* rows, const Activations& to, int64_t begin, int64_t end) {
  const int64_t groups = to.groups();
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      int8_t* const codes = to.codes + row * to.stride + g * to.group;
      round_group<type>(rows, row * to.inputs + g * to.group, to.group, codes, to, row * groups + g);
    }
  }
}

void round_rows(const void* rows, Type type, const Activations& to, int64_t begin, int64_t end) {
  if (type == Type::bfloat16) round_typed<Type::bfloat16>(rows, to, begin, end);
  else if (type == Type::float16) round_typed<Type::float16>(rows, to, begin, end);
  else round_typed<Type::float32>(rows, to, begin, end);
}

// --- Results -------------------------------------------------------------------------------------------------------

void store_some(void* result, Type type, int64_t place, const float* values, int64_t count) {
  // Through a whole vector, so that the last outputs are rounded as all others are.
  alignas(64) uint16_t halves[kTile];
  if (type == Type::float32) {
    std::memcpy(static_cast<float*>(result) + place, values, count * sizeof(float));
    return;
  }
  for (int i = 0; i < kTile; i += Simd::kLanes) {
    if (type == Type::bfloat16) Simd::store_bfloat16(halves + i, Simd::load(values + i));
    else Simd::store_float16(halves + i, Simd::load(values + i));
  }
  std::memcpy(static_cast<uint16_t*>(result) + place, halves, count * sizeof(uint16_t));
}

// A tile's results of one row; `count` of them exist.
void store_row(const Product& p, int64_t row, int64_t output, const Floats* values) {
  const int64_t place = row * p.outputs + output, count = p.outputs - output;
  if (count < kTile) {
    alignas(64) float some[kTile];
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) Simd::store(some + w * Simd::kLanes, values[w]);
    store_some(p.result, p.type, place, some, count);
    return;
  }
#pragma GCC unroll 4
  for (int w = 0; w < Simd::kWidth; ++w) {
    const int64_t at = place + w * Simd::kLanes;
    if (p.type == Type::bfloat16) Simd::store_bfloat16(static_cast<uint16_t*>(p.result) + at, values[w]);
    else if (p.type == Type::float16) Simd::store_float16(static_cast<uint16_t*>(p.result) + at, values[w]);
    else Simd::store(static_cast<float*>(p.result) + at, values[w]);
  }
}

// --- Sums ----------------------------------------------------------------------------------------------------------

// What one call of a tile works on: some inputs of `kTile` outputs, and as many rows as the tile is made for.
struct Piece {
  int64_t row, block, lane;
  int64_t begin, end;    // of the inputs
  int32_t* sums;         // [.., kBlock]: of the first row, what the inputs before `begin` came to
  const uint8_t* ahead;  // weights that are needed next, fetched into the cache meanwhile: `step` bytes at each turn
  int64_t step;
};

inline __attribute__((always_inline)) void fetch(const uint8_t*& ahead, int64_t step) {
  __builtin_prefetch(ahead, 0, 2);
  __builtin_prefetch(ahead + step / 2, 0, 2);
  ahead += step;
}

// Adds `count` inputs' products to sums[rows][width]. `codes`: the first input's of the tile's outputs.
template <int rows>
inline __attribute__((always_inline)) void add_int8(
    Ints (&sums)[rows][Simd::kWidth], const uint8_t* codes, const int8_t* first, int64_t stride, int64_t count,
    const uint8_t*& ahead, int64_t step) {
  for (int64_t i = 0; i < count; i += 4, codes += 4 * kBlock) {
    Codes weights[Simd::kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) weights[w] = Simd::load_codes(codes + 4 * w * Simd::kLanes);
    fetch(ahead, step);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto four = Simd::four(first + r * stride + i);
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::dot_int8(sums[r][w], weights[w], four);
    }
  }
}

template <int rows>
inline __attribute__((always_inline)) void add_int4(
    Ints (&sums)[rows][Simd::kWidth], const uint8_t* codes, const int8_t* first, int64_t stride, int64_t count,
    const uint8_t*& ahead, int64_t step) {
  for (int64_t i = 0; i < count; i += 8, codes += 4 * kBlock) {
    Codes pairs[Simd::kWidth], weights[Simd::kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) {
      pairs[w] = Simd::load_codes(codes + 4 * w * Simd::kLanes);
      weights[w] = Simd::low(pairs[w]);
    }
    fetch(ahead, step);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto four = Simd::four(first + r * stride + i);
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::dot_int4(sums[r][w], weights[w], four);
    }
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) weights[w] = Simd::high(pairs[w]);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto four = Simd::four(first + r * stride + i + 4);
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::dot_int4(sums[r][w], weights[w], four);
    }
  }
}

// --- Tiles -----------------------------------------------------------------------------------------------------------

// With a scale for each output and each row: whole sums, scaled once.
template <int rows>
void tile_rows(const Product& p, const Piece& piece) {
  const int64_t stride = p.rows.stride, row = piece.row;
  Ints sums[rows][Simd::kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) {
      const int32_t* const before = piece.sums + r * kBlock + w * Simd::kLanes;
      sums[r][w] = piece.begin ? Simd::load_ints(before) : Simd::ints(p.rows.starts[row + r]);
    }
  }
  const uint8_t* codes = p.packed + (piece.block * p.rows.inputs + piece.begin) * kBlock + 4 * piece.lane;
  const uint8_t* ahead = piece.ahead;
  add_int8<rows>(
      sums, codes, p.rows.codes + row * stride + piece.begin, stride, piece.end - piece.begin, ahead, piece.step);
  if (piece.end < p.rows.inputs) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) Simd::store_ints(piece.sums + r * kBlock + w * Simd::kLanes, sums[r][w]);
    }
    return;
  }
  const int64_t output = piece.block * kBlock + piece.lane;
  alignas(64) float some[kTile] = {};
  const float* scales = p.scales + output;
  if (p.outputs - output < kTile) {
    std::memcpy(some, scales, (p.outputs - output) * sizeof(float));
    scales = some;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    Floats values[Simd::kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < Simd::kWidth; ++w) {
      const Floats scaled = Simd::multiply(Simd::to_floats(sums[r][w]), Simd::load(scales + w * Simd::kLanes));
      values[w] = Simd::multiply(scaled, Simd::floats(p.rows.scales[row + r]));
    }
    store_row(p, row + r, output, values);
  }
}

// Scales and, of int4, offsets of a tile's outputs in one group; `at`: behind the group's codes.
template <Held held>
inline __attribute__((always_inline)) void load_scaling(
    const uint8_t* at, int64_t lane, Floats (&scales)[Simd::kWidth], Floats (&offsets)[Simd::kWidth]) {
#pragma GCC unroll 4
  for (int w = 0; w < Simd::kWidth; ++w) {
    const int64_t place = lane + w * Simd::kLanes;
    const uint16_t* const halves = reinterpret_cast<const uint16_t*>(at) + place;
    if constexpr (held == Held::int8_groups) {
      scales[w] = Simd::load(reinterpret_cast<const float*>(at) + place);
    } else if constexpr (held == Held::int4_bfloat16) {
      scales[w] = Simd::load_bfloat16(halves);
      offsets[w] = Simd::load_bfloat16(halves + kBlock);
    } else {
      scales[w] = Simd::load_float16(halves);
      offsets[w] = Simd::load_float16(halves + kBlock);
    }
  }
}

// With scales for each group of an output and of a row: whole sums within a group, scaled and added group after group.
template <Held held, int rows>
void tile_groups(const Product& p, const Piece& piece) {
  constexpr bool is_int8 = held == Held::int8_groups;
  const int64_t group = p.rows.group, groups = p.rows.groups(), stride = p.rows.stride;
  const int64_t step = group_bytes(held, group), codes_bytes = is_int8 ? kBlock * group : kBlock * group / 2;
  const int64_t begin = piece.begin / group, end = piece.end / group;
  const uint8_t* at = p.packed + (piece.block * groups + begin) * step;
  const uint8_t* ahead = piece.ahead;
  const int8_t* first = p.rows.codes + piece.row * stride + piece.begin;
  float* const results = reinterpret_cast<float*>(piece.sums);  // in memory: the registers are for the sums
  for (int64_t g = begin; g < end; ++g, at += step, first += group) {
    const int64_t place = piece.row * groups + g;
    Ints sums[rows][Simd::kWidth];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::ints(p.rows.starts[place + r * groups]);
    }
    if constexpr (is_int8) add_int8<rows>(sums, at + 4 * piece.lane, first, stride, group, ahead, piece.step);
    else add_int4<rows>(sums, at + 4 * piece.lane, first, stride, group, ahead, piece.step);
    Floats scales[Simd::kWidth], offsets[Simd::kWidth];
    load_scaling<held>(at + codes_bytes, piece.lane, scales, offsets);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Floats scale = Simd::floats(p.rows.scales[place + r * groups]);
      [[maybe_unused]] const Floats shift = Simd::floats(p.rows.shifts[place + r * groups]);
#pragma GCC unroll 4
      for (int w = 0; w < Simd::kWidth; ++w) {
        float* const result = results + r * kBlock + w * Simd::kLanes;
        const Floats both = Simd::multiply(scales[w], scale), before = g ? Simd::load(result) : Simd::floats(0.0f);
        Floats after = Simd::multiply_add(Simd::to_floats(sums[r][w]), both, before);
        if constexpr (!is_int8) after = Simd::multiply_add(offsets[w], shift, after);
        Simd::store(result, after);
      }
    }
  }
  if (piece.end < p.rows.inputs) return;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    Floats values[Simd::kWidth];
    for (int w = 0; w < Simd::kWidth; ++w) values[w] = Simd::load(results + r * kBlock + w * Simd::kLanes);
    store_row(p, piece.row + r, piece.block * kBlock + piece.lane, values);
  }
}

// --- All rows, all outputs of a block --------------------------------------------------------------------------------

using Tile = void (*)(const Product&, const Piece&);
using Tiles = std::array<Tile, Simd::kRows>;

template <Held held, size_t... place>
constexpr Tiles tiles_of(std::index_sequence<place...>) {
  if constexpr (held == Held::int8_rows) return {tile_rows<place + 1>...};
  else return {tile_groups<held, place + 1>...};
}

template <Held held>
constexpr Tiles kTiles = tiles_of<held>(std::make_index_sequence<Simd::kRows>{});

const Tiles& tiles_for(Held held) {
  switch (held) {
    case Held::int8_rows: return kTiles<Held::int8_rows>;
    case Held::int8_groups: return kTiles<Held::int8_groups>;
    case Held::int4_bfloat16: return kTiles<Held::int4_bfloat16>;
    default: return kTiles<Held::int4_float16>;
  }
}

// All rows by some inputs of one block: weights that the nearest cache holds until the last rows have had them.
void multiply_part(const Product& p, const Tiles& tiles, Piece piece, int32_t* sums, int64_t bytes) {
  const int64_t most = p.held == Held::int8_rows ? Simd::kRows : Simd::kGroupRows;
  const int64_t turns = (p.row_count + most - 1) / most;
  const int64_t lanes = std::min(kBlock, p.outputs - piece.block * kBlock);
  const uint8_t* const next = piece.ahead;
  for (int64_t turn = 0; turn < turns; ++turn) {  // of about as many rows each
    piece.row = p.row_count * turn / turns;
    piece.sums = sums + piece.row * kBlock;
    // The next part's weights are fetched within the first turn, or the first two.
    piece.ahead = next + (turn == 1 ? bytes / 2 : 0);
    piece.step = turns == 1 ? 128 : turn < 2 ? 64 : 0;
    const int64_t rows = p.row_count * (turn + 1) / turns - piece.row;
    for (piece.lane = 0; piece.lane < lanes; piece.lane += kTile) {
      Piece tile = piece;
      tile.sums += piece.lane;
      tiles[rows - 1](p, tile);
    }
  }
}

void multiply(const Product& p, int64_t begin, int64_t end) {
  const Tiles& tiles = tiles_for(p.held);
  const int64_t inputs = p.rows.inputs, group = p.rows.group;
  const bool by_rows = p.held == Held::int8_rows, is_int4 = p.held == Held::int4_bfloat16 || p.held == Held::int4_float16;
  const int64_t most = is_int4 ? 2 * kPartInputs : kPartInputs;
  const int64_t part = by_rows ? most : std::max(group, most / group * group);
  alignas(64) int32_t sums[kRowsAtOnce * kBlock];
  Piece piece{};
  for (piece.block = begin; piece.block < end; ++piece.block) {
    for (piece.begin = 0; piece.begin < inputs; piece.begin = piece.end) {
      piece.end = std::min(inputs, piece.begin + part);
      const int64_t count = piece.end - piece.begin;
      const int64_t bytes = by_rows ? count * kBlock : count / group * group_bytes(p.held, group);
      const int64_t before = by_rows ? piece.begin * kBlock : piece.begin / group * group_bytes(p.held, group);
      const int64_t block_bytes = by_rows ? inputs * kBlock : p.rows.groups() * group_bytes(p.held, group);
      piece.ahead = p.packed + piece.block * block_bytes + before + bytes;
      multiply_part(p, tiles, piece, sums, bytes);
    }
  }
}

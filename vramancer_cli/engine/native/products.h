// The products themselves, written once over `Simd`, which the file that includes this has defined in the same namespace.
//
// A tile is `rows` rows by `kTile` outputs, its sums in registers. Row count and tile never change what one result is made
// of, nor in which order.

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
void round_group(const void* rows, int64_t place, int64_t count, int8_t* codes, float* scale, int32_t* sum) {
  Ints most = Simd::ints(0);
  for (int64_t i = 0; i < count; i += Simd::kLanes) {
    most = Simd::larger(most, Simd::magnitude_bits(load_row<type>(rows, place + i)));
  }
  const int32_t bits = Simd::largest(most);
  float largest;
  std::memcpy(&largest, &bits, 4);
  largest /= kInt8Limit;
  *scale = largest < kSmallest ? kSmallest : largest;  // NaN stays
  const Floats divisor = Simd::floats(*scale);
  Ints sums = Simd::ints(0);
  for (int64_t i = 0; i < count; i += Simd::kLanes) {
    sums = Simd::add(sums, Simd::store_rounded(codes + i, Simd::divide(load_row<type>(rows, place + i), divisor)));
  }
  *sum = Simd::sum(sums);
}

template <Type type>
void round_typed(const void* rows, const Activations& to, int64_t begin, int64_t end) {
  const int64_t groups = to.groups();
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      round_group<type>(
          rows, row * to.inputs + g * to.group, to.group, to.codes + row * to.stride + g * to.group,
          to.scales + row * groups + g, to.sums + row * groups + g);
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
    for (int w = 0; w < Simd::kWidth; ++w) Simd::store(some + w * Simd::kLanes, values[w]);
    store_some(p.result, p.type, place, some, count);
    return;
  }
  for (int w = 0; w < Simd::kWidth; ++w) {
    const int64_t at = place + w * Simd::kLanes;
    if (p.type == Type::bfloat16) Simd::store_bfloat16(static_cast<uint16_t*>(p.result) + at, values[w]);
    else if (p.type == Type::float16) Simd::store_float16(static_cast<uint16_t*>(p.result) + at, values[w]);
    else Simd::store(static_cast<float*>(p.result) + at, values[w]);
  }
}

// --- Sums ----------------------------------------------------------------------------------------------------------

// Adds `count` inputs' products to sums[rows][width]. `codes`: the first input's of the tile's outputs.
template <int rows>
inline __attribute__((always_inline)) void add_int8(
    Ints (&sums)[rows][Simd::kWidth], const uint8_t* codes, const int8_t* first, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count; i += 4, codes += 4 * kBlock) {
    Codes weights[Simd::kWidth];
    for (int w = 0; w < Simd::kWidth; ++w) weights[w] = Simd::load_codes(codes + 4 * w * Simd::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto four = Simd::four(first + r * stride + i);
      for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::dot_int8(sums[r][w], weights[w], four);
    }
  }
}

template <int rows>
inline __attribute__((always_inline)) void add_int4(
    Ints (&sums)[rows][Simd::kWidth], const uint8_t* codes, const int8_t* first, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count; i += 8, codes += 4 * kBlock) {
    Codes low[Simd::kWidth], high[Simd::kWidth];
    for (int w = 0; w < Simd::kWidth; ++w) {
      const Codes pairs = Simd::load_codes(codes + 4 * w * Simd::kLanes);
      low[w] = Simd::low(pairs);
      high[w] = Simd::high(pairs);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto four = Simd::four(first + r * stride + i), next = Simd::four(first + r * stride + i + 4);
      for (int w = 0; w < Simd::kWidth; ++w) {
        sums[r][w] = Simd::dot_int4(Simd::dot_int4(sums[r][w], low[w], four), high[w], next);
      }
    }
  }
}

template <int rows>
void tile_rows(const Product& p, int64_t row, int64_t block, int64_t lane) {
  const int64_t inputs = p.rows.inputs, stride = p.rows.stride;
  Ints sums[rows][Simd::kWidth];
  for (int r = 0; r < rows; ++r) {
    for (int w = 0; w < Simd::kWidth; ++w) sums[r][w] = Simd::ints(-Simd::kInt8Start * p.rows.sums[row + r]);
  }
  const uint8_t* codes = p.packed + block * kBlock * inputs + 4 * lane;
  add_int8<rows>(sums, codes, p.rows.codes + row * stride, stride, inputs);
  const int64_t output = block * kBlock + lane;
  alignas(64) float some[kTile] = {};
  const float* scales = p.scales + output;
  if (p.outputs - output < kTile) {
    std::memcpy(some, scales, (p.outputs - output) * sizeof(float));
    scales = some;
  }
  for (int r = 0; r < rows; ++r) {
    Floats values[Simd::kWidth];
    for (int w = 0; w < Simd::kWidth; ++w) {
      const Floats scaled = Simd::multiply(Simd::to_floats(sums[r][w]), Simd::load(scales + w * Simd::kLanes));
      values[w] = Simd::multiply(scaled, Simd::floats(p.rows.scales[row + r]));
    }
    store_row(p, row + r, output, values);
  }
}

// --- All rows, all outputs of a block --------------------------------------------------------------------------------

using Tile = void (*)(const Product&, int64_t row, int64_t block, int64_t lane);

template <size_t... place>
constexpr std::array<Tile, sizeof...(place)> tiles_rows(std::index_sequence<place...>) {
  return {tile_rows<place + 1>...};
}
constexpr auto kTilesRows = tiles_rows(std::make_index_sequence<Simd::kRows>{});

void multiply(const Product& p, int64_t begin, int64_t end) {
  const auto& tiles = kTilesRows;
  const int64_t turns = (p.row_count + Simd::kRows - 1) / Simd::kRows;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t turn = 0; turn < turns; ++turn) {  // of about as many rows each
      const int64_t row = p.row_count * turn / turns, next = p.row_count * (turn + 1) / turns;
      const int64_t lanes = std::min(kBlock, p.outputs - block * kBlock);
      for (int64_t lane = 0; lane < lanes; lane += kTile) tiles[next - row - 1](p, row, block, lane);
    }
  }
}

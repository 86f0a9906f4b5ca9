// How a C++ function becomes torch.ops.vramancer.<name>: `VRAM_OP(name, "schema", function);`, one for each operator.
//
// Arguments: Tensor (moved in), int64_t, double, bool. Results: Tensor, int64_t, or void. Exceptions become RuntimeError.
#pragma once

#include <cstring>
#include <tuple>
#include <type_traits>

#include "tensor.h"

namespace vram {

template <class T>
T unboxed(StableIValue value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(reinterpret_cast<AtenTensorHandle>(value));
  } else {
    T found;
    std::memcpy(&found, &value, sizeof(T));
    return found;
  }
}

inline StableIValue boxed(Tensor&& value) { return reinterpret_cast<StableIValue>(value.release()); }
inline StableIValue boxed(int64_t value) { return static_cast<StableIValue>(value); }

template <auto function>
struct Boxed;

template <class Result, class... Args, Result (*function)(Args...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    call(stack, std::index_sequence_for<Args...>{});
  }

 private:
  template <size_t... place>
  static void call(StableIValue* stack, std::index_sequence<place...>) {
    // Braces: all are taken from the stack, in order, before the function may throw.
    std::tuple<Args...> args{unboxed<Args>(stack[place])...};
    if constexpr (std::is_void_v<Result>) {
      function(std::move(std::get<place>(args))...);
    } else {
      stack[0] = boxed(function(std::move(std::get<place>(args))...));
    }
  }
};

// For its effect. `key`: "CPU" where tensors come in, "CompositeExplicitAutograd" where none do.
struct Registration {
  Registration(const char* name, const char* schema, void (*call)(StableIValue*, uint64_t, uint64_t), const char* key) {
    TorchLibraryHandle schemas, functions;  // torch keeps what they registered for as long as they live: for ever
    done(aoti_torch_library_init_fragment("vramancer", __FILE__, __LINE__, &schemas));
    done(aoti_torch_library_def(schemas, schema));
    done(aoti_torch_library_init_impl("vramancer", key, __FILE__, __LINE__, &functions));
    done(torch_library_impl(functions, name, call, kTorchAbi));
  }
};

#define VRAM_OP_FOR(name, schema, function, key) \
  static const ::vram::Registration registered_##name{#name, #name schema, &::vram::Boxed<&function>::call, key}
#define VRAM_OP(name, schema, function) VRAM_OP_FOR(name, schema, function, "CPU")

}  // namespace vram

// A torch tensor as an operator gets it, what operators demand of one, and torch's threads.
//
// All sizes are checked here or by the operator before a pointer is used: what a kernel gets is right by then.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "torch_abi.h"

namespace vram {

inline void check(bool right, const char* what) {
  if (!right) throw std::runtime_error(std::string("vramancer: ") + what);
}

inline void done(AOTITorchError code) { check(code == 0, "torch refused a call"); }

enum class Type : int { float32, bfloat16, float16, int8, uint8, int32, int64, other };

inline Type type_of(int32_t code) {
  if (code == aoti_torch_dtype_float32()) return Type::float32;
  if (code == aoti_torch_dtype_bfloat16()) return Type::bfloat16;
  if (code == aoti_torch_dtype_float16()) return Type::float16;
  if (code == aoti_torch_dtype_int8()) return Type::int8;
  if (code == aoti_torch_dtype_uint8()) return Type::uint8;
  if (code == aoti_torch_dtype_int32()) return Type::int32;
  return code == aoti_torch_dtype_int64() ? Type::int64 : Type::other;
}

inline int32_t code_of(Type type) {
  switch (type) {
    case Type::float32: return aoti_torch_dtype_float32();
    case Type::bfloat16: return aoti_torch_dtype_bfloat16();
    case Type::float16: return aoti_torch_dtype_float16();
    case Type::int8: return aoti_torch_dtype_int8();
    case Type::uint8: return aoti_torch_dtype_uint8();
    case Type::int32: return aoti_torch_dtype_int32();
    case Type::int64: return aoti_torch_dtype_int64();
    default: throw std::runtime_error("vramancer: a dtype without a name here");
  }
}

// Owns one reference. Moved, never copied.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&&) = delete;
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  // A new one on the CPU, dense, not written.
  static Tensor empty(std::initializer_list<int64_t> sizes, Type type) {
    int64_t strides[8];
    check(sizes.size() <= 8, "too many dimensions");
    int64_t step = 1;
    for (auto place = sizes.size(); place-- > 0;) {
      strides[place] = step;
      step *= sizes.begin()[place];
    }
    AtenTensorHandle made;
    done(aoti_torch_empty_strided(
        static_cast<int64_t>(sizes.size()), sizes.begin(), strides, code_of(type), aoti_torch_device_type_cpu(), 0,
        &made));
    return Tensor(made);
  }

  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  template <class T>
  T* data() const { void* at; done(aoti_torch_get_data_ptr(handle_, &at)); return static_cast<T*>(at); }
  int64_t dim() const { int64_t value; done(aoti_torch_get_dim(handle_, &value)); return value; }
  int64_t numel() const { int64_t value; done(aoti_torch_get_numel(handle_, &value)); return value; }
  int64_t size(int64_t d) const { int64_t* all; done(aoti_torch_get_sizes(handle_, &all)); return all[d]; }
  int64_t stride(int64_t d) const { int64_t* all; done(aoti_torch_get_strides(handle_, &all)); return all[d]; }
  bool is_dense() const { bool value; done(aoti_torch_is_contiguous(handle_, &value)); return value; }
  Type type() const { int32_t code; done(aoti_torch_get_dtype(handle_, &code)); return type_of(code); }

 private:
  AtenTensorHandle handle_;
};

// Runs work(begin, end) over [0, count) on torch's own threads, at least `grain` pieces on each. Must not throw.
template <class Work>
void parallel(int64_t count, int64_t grain, const Work& work) {
  auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Work*>(context))(begin, end); };
  done(torch_parallel_for(0, count, grain, call, const_cast<Work*>(&work)));
}

}  // namespace vram

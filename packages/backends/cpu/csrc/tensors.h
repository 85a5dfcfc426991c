// SPDX-License-Identifier: Apache-2.0
// What operators get from torch, as what kernels take: checked, and in a row.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rows.h"
#include "run.h"

namespace quanto {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Of results that are numbers, not codes.
inline Type result_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::kFloat;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kHalf;
    default: break;
  }
  STD_TORCH_CHECK(false, "dtype must be float32, bfloat16 or float16");
  return Type::kNone;
}

// torch's numbers of element types. Tensor::scalar_type asks the library for one after the other, 13 before bfloat16 is
// found; here they are asked for once.
struct Numbers {
  const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16();
  const int32_t half = aoti_torch_dtype_float16(), int8 = aoti_torch_dtype_int8();
};

inline int32_t number_of(const Tensor& t) {
  int32_t number = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &number));
  return number;
}

// kNone for a type that no kernel takes.
inline Type find_type(const Tensor& t) {
  static const Numbers known;
  const int32_t number = number_of(t);
  if (number == known.float32) return Type::kFloat;
  if (number == known.bfloat16) return Type::kBFloat16;
  if (number == known.half) return Type::kHalf;
  return number == known.int8 ? Type::kInt8 : Type::kNone;
}

inline Type type_of(const Tensor& t, const char* what) {
  const Type type = find_type(t);
  STD_TORCH_CHECK(type != Type::kNone, what, " must be float32, bfloat16, float16 or int8");
  return type;
}

inline Type floating(const Tensor& t, const char* what) {
  const Type type = find_type(t);
  STD_TORCH_CHECK(type != Type::kNone && type != Type::kInt8, what, " must be float32, bfloat16 or float16");
  return type;
}

inline Nonlinearity nonlinearity_of(const std::string& name) {
  if (name.empty()) return Nonlinearity::kNone;
  if (name == "relu") return Nonlinearity::kRelu;
  if (name == "gelu") return Nonlinearity::kGelu;
  if (name == "gelu_tanh") return Nonlinearity::kGeluTanh;
  STD_TORCH_CHECK(name == "silu", "nonlinearity must be one of relu, gelu, gelu_tanh, silu or empty, got ", name);
  return Nonlinearity::kSilu;
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The numbers of a tensor in a row; `made` holds them where they have to be copied.
inline const void* data_of(const Tensor& t, std::optional<Tensor>& made) {
  if (t.is_contiguous()) return t.const_data_ptr();
  made = torch::stable::contiguous(t);
  return made->const_data_ptr();
}

inline float global_of(const std::optional<Tensor>& global) {
  if (!global.has_value()) return 1;
  STD_TORCH_CHECK(global->numel() == 1 && find_type(*global) == Type::kFloat, "global_scale must be one float32");
  return *static_cast<const float*>(global->const_data_ptr());
}

// What a scale stands for: [rows, features] of a weight [n, k], all of it where there is no block.
struct Grid {
  int64_t rows, group, groups, scales;
};

inline Grid grid_of(const std::vector<int64_t>& block, int64_t n, int64_t k) {
  const bool whole = block.empty();
  STD_TORCH_CHECK(whole || (block.size() == 2 && block[0] > 0 && block[1] > 0), "block_size must be empty or two positive numbers");
  const int64_t rows = std::clamp<int64_t>(whole ? n : block[0], 1, std::max<int64_t>(n, 1));
  const int64_t group = std::clamp<int64_t>(whole ? k : block[1], 1, std::max<int64_t>(k, 1));
  const int64_t groups = divide_up(k, group);
  return {rows, group, groups, whole ? 1 : divide_up(n, rows) * groups};
}

// Features of a row, far from what bits and bytes of them would overflow.
inline void check_size(int64_t size) {
  constexpr int64_t kMost = int64_t{1} << 48;
  STD_TORCH_CHECK(size >= 0 && size <= kMost, "size must be between 0 and ", kMost, ", got ", size);
}

// A weight and the copies that keep its memory.
struct Held {
  Weight w;
  std::optional<Tensor> codes, scale, zero;
};

inline Held weight(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero, const std::optional<Tensor>& global,
            const std::string& qtype, const std::vector<int64_t>& block, int64_t k, bool panels) {
  Held held;
  Weight& w = held.w;
  w.format = find_format(qtype.c_str());
  STD_TORCH_CHECK(w.format != nullptr, "qtype ", qtype, " is unknown to quanto-backend-cpu");
  STD_TORCH_CHECK(codes.dim() == 2, "codes must have two dimensions, got ", codes.dim());
  STD_TORCH_CHECK(codes.element_size() == 1, "codes must be bytes, got elements of ", codes.element_size());
  w.scale_type = floating(scale, "scale");
  w.n = codes.size(0);
  w.k = k;
  check_size(k);
  const bool whole = block.empty();
  const Grid grid = grid_of(block, panels ? 0 : w.n, k);
  w.group = grid.group;
  w.groups = grid.groups;
  w.units = (w.group + w.format->unit - 1) / w.format->unit;
  w.codes = static_cast<const uint8_t*>(data_of(codes, held.codes));
  w.scale = data_of(scale, held.scale);
  const int64_t row_bytes = panels ? panel_bytes(w) / kRows : (k * w.format->bits + 7) / 8;
  STD_TORCH_CHECK(codes.size(1) == row_bytes, "codes must have ", row_bytes, " bytes a row for ", k, " features of ", qtype, ", got ",
                  codes.size(1));
  w.stride = row_bytes;
  w.ready = panels ? w.n / kRows : 0;
  w.scale_rows = whole || panels ? 1 : grid.rows;
  w.scale_stride = whole && !panels ? 0 : w.groups;
  const int64_t scales = panels ? w.n * w.groups : grid.scales;
  STD_TORCH_CHECK(scale.numel() == scales, "scale must have ", scales, " elements, got ", scale.numel());
  if (zero.has_value()) {
    STD_TORCH_CHECK(zero->numel() == scales, "zero_point must have ", scales, " elements, got ", zero->numel());
    w.zero = data_of(*zero, held.zero);
    w.zero_type = type_of(*zero, "zero_point");
  }
  w.global = global_of(global);
  return held;
}

// The numbers of a tensor as float32, which it may already hold.
class Floats {
 public:
  Floats() = default;
  Floats(const Tensor& t, const char* what) {
    const Type type = type_of(t, what);
    const void* data = data_of(t, held_);
    data_ = static_cast<const float*>(data);
    if (type == Type::kFloat) return;
    const int64_t count = t.numel();
    made_ = allocate<float>(count);
    for (int64_t i = 0; i < count; ++i) made_[i] = load_number(data, i, type);
    data_ = made_.get();
  }
  const float* get() const { return data_; }
  float operator[](int64_t i) const { return data_[i]; }

 private:
  std::optional<Tensor> held_;
  Buffer<float> made_;
  const float* data_ = nullptr;
};

inline Floats bias_of(const std::optional<Tensor>& bias, int64_t n) {
  if (!bias.has_value()) return {};
  STD_TORCH_CHECK(bias->numel() == n, "bias must have ", n, " elements, got ", bias->numel());
  floating(*bias, "bias");
  return {*bias, "bias"};
}

// How many rows x has; a vector is one.
inline int64_t rows_of(const Tensor& x) {
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) count *= x.size(i);
  return count;
}

// Like x, but for the last size; of torch's number of a type. Not new_empty, which goes through the dispatcher: it takes
// 0.5 us longer.
inline Tensor output_like(const Tensor& x, int64_t n, int32_t number) {
  constexpr int64_t kMost = 64;
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(dims <= kMost, "x must have at most ", kMost, " dimensions, got ", dims);
  int64_t sizes[kMost], strides[kMost], stride = 1;
  std::copy_n(x.sizes().begin(), dims, sizes);
  sizes[dims - 1] = n;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, number, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

inline Tensor output_like(const Tensor& x, int64_t n, ScalarType type) {
  return output_like(x, n, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)));
}

// Of the type of x.
inline Tensor output_like(const Tensor& x, int64_t n) { return output_like(x, n, number_of(x)); }

}  // namespace
}  // namespace quanto

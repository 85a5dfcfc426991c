// SPDX-License-Identifier: Apache-2.0
// Values of weights, and weights into the layout of format.h and back.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "pages.h"
#include "tensors.h"

namespace quanto {
namespace {

template <bool kPanels>
Tensor dequantize(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero, const std::optional<Tensor>& global,
                  const std::string& qtype, const std::vector<int64_t>& block, int64_t size, ScalarType dtype) {
  const Held held = weight(codes, scale, zero, global, qtype, block, size, kPanels);
  const Type type = result_type(dtype);
  Tensor out = torch::stable::new_empty(codes, {held.w.n, size}, dtype);
  if (out.numel() == 0) return out;
  void* data = out.mutable_data_ptr();
  parallel(held.w.panels(), size * kRows, [&](int64_t begin, int64_t end) {
    Subnormals guard;
    kernels().dequantize(held.w, begin, end, data, type);
    if (!held.w.poisoned()) return;
    std::optional<RowDecoder> decode;  // kernels make all of a row NaN that holds one
    for (int64_t row = begin * kRows; row < std::min(held.w.n, end * kRows); ++row) {
      if (!std::isnan(load_number(data, row * size, type))) continue;
      if (!decode) decode.emplace(held.w);
      (*decode)(row, static_cast<uint8_t*>(data) + row * size * size_of(type), type);
    }
  });
  return out;
}

template <bool kPanels>
Tensor embedding(const Tensor& indices, const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                 const std::optional<Tensor>& global, const std::string& qtype, const std::vector<int64_t>& block, int64_t size,
                 ScalarType dtype) {
  const Held held = weight(codes, scale, zero, global, qtype, block, size, kPanels);
  const Type type = result_type(dtype);
  const bool wide = indices.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || indices.scalar_type() == ScalarType::Int, "indices must be int64 or int32");
  const Tensor at = dense(indices);
  std::vector<int64_t> shape(indices.sizes().begin(), indices.sizes().end());
  shape.push_back(size);
  Tensor out = torch::stable::new_empty(codes, shape, dtype);
  const int64_t count = indices.numel(), row_bytes = size * size_of(type);
  const void* data = at.const_data_ptr();
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  std::atomic<int64_t> wrong{-1};
  parallel(count, size * 8, [&](int64_t begin, int64_t end) {
    Subnormals guard;
    const RowDecoder decode(held.w);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
      if (row < 0 || row >= held.w.n) {
        wrong = i;
      } else {
        decode(row, to + i * row_bytes, type);
      }
    }
  });
  STD_TORCH_CHECK(count == 0 || held.w.n > 0, "indices must be empty, since codes have no rows; got ", count);
  STD_TORCH_CHECK(wrong < 0, "indices must be between 0 and ", held.w.n - 1, "; element ", wrong.load(), " is not");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> pack_panels(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                                               const std::string& qtype, const std::vector<int64_t>& block, int64_t size) {
  const Held held = weight(codes, scale, zero, std::nullopt, qtype, block, size, false);
  const Weight& w = held.w;
  const int64_t row_bytes = panel_bytes(w) / kRows, scale_bytes = w.groups * size_of(w.scale_type), zero_bytes = w.groups * size_of(w.zero_type);
  Tensor packed = torch::stable::new_empty(codes, {w.n, row_bytes}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(scale, {w.n, w.groups}, scale.scalar_type());
  Tensor zeros = torch::stable::new_empty(zero.has_value() ? *zero : codes, {zero.has_value() ? w.n : 0, w.groups});
  auto* c = static_cast<uint8_t*>(packed.mutable_data_ptr());
  auto* s = static_cast<uint8_t*>(scales.mutable_data_ptr());
  auto* z = static_cast<uint8_t*>(zeros.mutable_data_ptr());
  prefer_huge_pages(c, w.n * row_bytes);
  parallel(w.n / kRows, size * kRows / 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t row = panel * kRows;
      pack_panel(w, panel, c + row * row_bytes, s + row * scale_bytes, z + row * zero_bytes);
    }
  });
  collapse_pages(c, w.n * row_bytes);
  // The last rows, fewer than a panel, stay canonical.
  const int64_t bytes = (w.k * w.format->bits + 7) / 8;
  for (int64_t row = w.n / kRows * kRows; row < w.n; ++row) {
    std::copy_n(w.codes + row * w.stride, bytes, c + row * row_bytes);
    std::fill_n(c + row * row_bytes + bytes, row_bytes - bytes, uint8_t{0});
    for (int64_t q = 0; q < w.groups; ++q) {
      const int64_t from = row / w.scale_rows * w.scale_stride + (w.scale_stride ? q : 0);
      const int ss = size_of(w.scale_type), zs = size_of(w.zero_type);
      std::copy_n(static_cast<const uint8_t*>(w.scale) + from * ss, ss, s + row * scale_bytes + q * ss);
      if (zs) std::copy_n(static_cast<const uint8_t*>(w.zero) + from * zs, zs, z + row * zero_bytes + q * zs);
    }
  }
  return {packed, scales, zeros};
}

std::tuple<Tensor, Tensor, Tensor> unpack_panels(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                                                 const std::string& qtype, const std::vector<int64_t>& block, int64_t size) {
  const Held held = weight(codes, scale, zero, std::nullopt, qtype, block, size, true);
  const Weight& w = held.w;
  const int64_t bytes = (w.k * w.format->bits + 7) / 8;
  Tensor rows = torch::stable::new_empty(codes, {w.n, bytes}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(scale, {w.n, w.groups}, scale.scalar_type());
  Tensor zeros = torch::stable::new_empty(zero.has_value() ? *zero : codes, {zero.has_value() ? w.n : 0, w.groups});
  auto* c = static_cast<uint8_t*>(rows.mutable_data_ptr());
  auto* s = static_cast<uint8_t*>(scales.mutable_data_ptr());
  auto* z = static_cast<uint8_t*>(zeros.mutable_data_ptr());
  parallel(w.ready, size * kRows / 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) unpack_panel(w, panel, c, bytes);
  });
  for (int64_t row = w.ready * kRows; row < w.n; ++row) std::copy_n(w.codes + row * w.stride, bytes, c + row * bytes);
  const auto spread = [&](const void* from, uint8_t* to, int each) {
    for (int64_t row = 0; each && row < w.n; ++row) {
      for (int64_t q = 0; q < w.groups; ++q) {
        const int64_t at = row < w.ready * kRows ? (row / kRows * w.groups + q) * kRows + row % kRows : row * w.groups + q;
        std::copy_n(static_cast<const uint8_t*>(from) + at * each, each, to + (row * w.groups + q) * each);
      }
    }
  };
  spread(w.scale, s, size_of(w.scale_type));
  spread(w.zero, z, size_of(w.zero_type));
  return {rows, scales, zeros};
}

}  // namespace
}  // namespace quanto

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CPU, m) {
  m.impl("dequantize", TORCH_BOX(&quanto::dequantize<false>));
  m.impl("dequantize_panels", TORCH_BOX(&quanto::dequantize<true>));
  m.impl("embedding", TORCH_BOX(&quanto::embedding<false>));
  m.impl("embedding_panels", TORCH_BOX(&quanto::embedding<true>));
  m.impl("pack_panels", TORCH_BOX(&quanto::pack_panels));
  m.impl("unpack_panels", TORCH_BOX(&quanto::unpack_panels));
}

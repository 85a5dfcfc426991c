// SPDX-License-Identifier: Apache-2.0
// The operators, bound through torch's stable ABI: one binary serves every torch from 2.11 on. Their schemas are those of
// quanto.ops, defined in Python; `…_panels` take weights in the layout of format.h, the others canonical ones.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "quantize.h"
#include "rows.h"
#include "run.h"
#include "tensors.h"

namespace quanto {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

namespace {

// -- linear -----------------------------------------------------------------------------------------------------------

template <bool kPanels, bool kInteger>
Tensor linear(const Tensor& x, const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
              const std::optional<Tensor>& global, const std::optional<Tensor>& bias, const std::string& qtype,
              const std::vector<int64_t>& block) {
  const Type type = floating(x, "x");
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(dims > 0, "x must have at least one dimension");
  const Held held = weight(codes, scale, zero, global, qtype, block, x.size(dims - 1), kPanels);
  std::optional<Tensor> made;
  const auto* rows = static_cast<const uint8_t*>(data_of(x, made));
  Tensor out = output_like(x, held.w.n);
  const Floats b = bias_of(bias, held.w.n);
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < dims; ++i) count *= x.size(i);
  if (count * held.w.n == 0) return out;
  const bool integer = kInteger && held.w.format->byte_scale != 0;
  run(kernels_for(count * held.w.n * held.w.k), held.w, {rows, type, count}, integer ? Way::kInteger : Way::kFloat,
      static_cast<uint8_t*>(out.mutable_data_ptr()), type, b.get(), 0);
  return out;
}

template <bool kPanels>
Tensor scaled_linear(const Tensor& x_codes, const Tensor& x_scale, const Tensor& codes, const Tensor& scale,
                     const std::optional<Tensor>& zero, const std::optional<Tensor>& global, const std::optional<Tensor>& bias,
                     const std::string& x_qtype, const std::string& qtype, const std::vector<int64_t>& block,
                     const std::optional<Tensor>& out_scale, ScalarType dtype, const std::string& nonlinearity) {
  STD_TORCH_CHECK(x_qtype == "int8" && x_codes.scalar_type() == ScalarType::Char, "x_codes must be int8, got ", x_qtype);
  STD_TORCH_CHECK(x_codes.dim() > 0, "x_codes must have at least one dimension");
  const Held held = weight(codes, scale, zero, global, qtype, block, x_codes.size(-1), kPanels);
  const Nonlinearity then = nonlinearity_of(nonlinearity);
  const Type type = out_scale.has_value() ? Type::kInt8 : result_type(dtype);
  Tensor out = output_like(x_codes, held.w.n, out_scale.has_value() ? ScalarType::Char : dtype);
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < x_codes.dim(); ++i) count *= x_codes.size(i);
  STD_TORCH_CHECK(x_scale.numel() == 1 || x_scale.numel() == count, "x_scale must have 1 or ", count, " elements, got ", x_scale.numel());
  floating(x_scale, "x_scale");
  if (out_scale.has_value()) {
    floating(*out_scale, "out_scale");
    STD_TORCH_CHECK(out_scale->numel() == 1, "out_scale must have one element, got ", out_scale->numel());
  }
  if (out.numel() == 0) return out;
  const Floats b = bias_of(bias, held.w.n), scales(x_scale, "x_scale");
  const Tensor rows = dense(x_codes);
  const float result_scale = out_scale.has_value() ? Floats(*out_scale, "out_scale")[0] : 0;
  Rows x{static_cast<const uint8_t*>(rows.const_data_ptr()), Type::kInt8, count, scales.get(), x_scale.numel() > 1};
  const Format& f = *held.w.format;
  const bool integer = f.code <= Code::kInt2 || f.byte_scale == .5f;  // nf4 and float8 are no multiples of a step
  Buffer<float> values;
  if (!integer) {
    const int64_t k = held.w.k;
    values = allocate<float>(count * k);
    const auto* from = reinterpret_cast<const int8_t*>(x.data);
    parallel(count, k, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * k; i < end * k; ++i) values[i] = static_cast<float>(from[i]) * scales[x.many ? i / k : 0];
    });
    x = {reinterpret_cast<const uint8_t*>(values.get()), Type::kFloat, count};
  }
  run(kernels_for(count * held.w.n * held.w.k), held.w, x, integer ? Way::kInteger : Way::kFloat, static_cast<uint8_t*>(out.mutable_data_ptr()), type, b.get(), result_scale, then);
  return out;
}

// -- values of weights ------------------------------------------------------------------------------------------------

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
  STD_TORCH_CHECK(wrong < 0, "indices must be between 0 and ", held.w.n - 1, "; element ", wrong.load(), " is not");
  return out;
}

// -- layout -----------------------------------------------------------------------------------------------------------

// Asks for pages of 2 MB below memory that nothing was written to yet: weights are read 8 to 12 % faster from such.
void prefer_huge_pages([[maybe_unused]] uint8_t* data, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t at = reinterpret_cast<uintptr_t>(data), begin = (at + kPage - 1) / kPage * kPage, end = (at + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: what becomes of it is no error
#endif
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

// -- codes ------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> dynamic_quantize(const Tensor& x, const std::string& qtype, ScalarType scale_dtype) {
  const Type type = floating(x, "x");
  STD_TORCH_CHECK(qtype == "int8" && scale_dtype == ScalarType::Float, "quantizes to int8 with float32 scales only");
  STD_TORCH_CHECK(x.dim() > 0, "x must have at least one dimension");
  const Tensor rows = dense(x);
  const int64_t k = x.size(-1);
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) count *= x.size(i);
  Tensor codes = output_like(x, k, ScalarType::Char), scales = output_like(x, 1, ScalarType::Float);
  const void* from = rows.const_data_ptr();
  auto* c = static_cast<int8_t*>(codes.mutable_data_ptr());
  auto* s = static_cast<float*>(scales.mutable_data_ptr());
  parallel(count, k * 2, [&](int64_t begin, int64_t end) { kernels().tokens(from, type, k, c, s, begin, end); });
  return {codes, scales};
}

Tensor quantize(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero, const std::optional<Tensor>& global,
                const std::string& qtype, const std::vector<int64_t>& block) {
  const Type type = floating(x, "x");
  const Format* format = find_format(qtype.c_str());
  STD_TORCH_CHECK(format != nullptr, "qtype ", qtype, " is unknown to quanto-backend-cpu");
  STD_TORCH_CHECK(x.dim() == 2, "x must have two dimensions, got ", x.dim());
  const int64_t n = x.size(0), k = x.size(1), bytes = (k * format->bits + 7) / 8;
  Tensor out = torch::stable::new_empty(x, {n, bytes}, format->code == Code::kInt8 ? ScalarType::Char : ScalarType::Byte);
  if (n == 0 || k == 0) return out;
  const bool whole = block.empty();
  STD_TORCH_CHECK(whole || (block.size() == 2 && block[0] > 0 && block[1] > 0), "block_size must be empty or two positive numbers");
  const int64_t group = whole ? k : std::min(block[1], k), rows = whole ? n : block[0], groups = divide_up(k, group);
  const int64_t scales = whole ? 1 : divide_up(n, rows) * groups;
  STD_TORCH_CHECK(scale.numel() == scales, "scale must have ", scales, " elements, got ", scale.numel());
  floating(scale, "scale");
  STD_TORCH_CHECK(!zero.has_value() || zero->numel() == scales, "zero_point must have ", scales, " elements");
  const Floats s(scale, "scale"), z = zero.has_value() ? Floats(*zero, "zero_point") : Floats();
  const float shared = global_of(global);
  const bool integer_zero = !zero.has_value() || zero->scalar_type() == ScalarType::Char;
  const Tensor held = dense(x);
  const void* from = held.const_data_ptr();
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const Encoder encode(*format);
  parallel(n, k * 16, [&](int64_t begin, int64_t end) {
    const Buffer<float> values = allocate<float>(k);
    const Buffer<uint8_t> codes = allocate<uint8_t>(k);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < k; ++i) values[i] = load_number(from, row * k + i, type);
      for (int64_t q = 0; q < groups; ++q) {
        const int64_t at = whole ? 0 : row / rows * groups + q, first = q * group;
        encode(values.get() + first, std::min(group, k - first), s[at] * shared, z.get() ? z[at] : 0.f, integer_zero,
               codes.get() + first);
      }
      if (format->bits == 8) {
        std::copy_n(codes.get(), k, to + row * bytes);
      } else {
        pack_row(codes.get(), k, format->bits, to + row * bytes);
      }
    }
  });
  return out;
}

template <bool kPack>
Tensor repack(const Tensor& from, int64_t bits, int64_t size) {
  STD_TORCH_CHECK(from.scalar_type() == ScalarType::Byte && bits > 0 && bits < 8 && from.dim() > 0,
                  "takes uint8 of at least one dimension and 1 to 7 bits");
  const int64_t width = from.size(-1), bytes = (size * bits + 7) / 8;
  STD_TORCH_CHECK(width == (kPack ? size : bytes), "packed must have ", bytes, " bytes a row, got ", width);
  Tensor out = output_like(from, kPack ? bytes : size, ScalarType::Byte);
  const Tensor held = dense(from);
  const auto* in = static_cast<const uint8_t*>(held.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t rows = width ? from.numel() / width : 0;
  parallel(rows, size * 2, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (kPack) {
        pack_row(in + row * size, size, static_cast<int>(bits), to + row * bytes);
      } else {
        unpack_row(in + row * bytes, size, static_cast<int>(bits), to + row * size);
      }
    }
  });
  return out;
}

Tensor pack(const Tensor& codes, int64_t bits) { return repack<true>(codes, bits, codes.size(-1)); }
Tensor unpack(const Tensor& packed, int64_t bits, int64_t size) { return repack<false>(packed, bits, size); }

std::string isa() { return kernels().name; }
std::string isas() { return available_kernels(); }
void select_isa(const std::string& name) { select_kernels(name.c_str()); }

}  // namespace
}  // namespace quanto

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&quanto::isa));
  m.impl("isas", TORCH_BOX(&quanto::isas));
  m.impl("select_isa", TORCH_BOX(&quanto::select_isa));
}

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX((&quanto::linear<false, false>)));
  m.impl("linear_panels", TORCH_BOX((&quanto::linear<true, false>)));
  m.impl("linear_integer", TORCH_BOX((&quanto::linear<false, true>)));
  m.impl("linear_integer_panels", TORCH_BOX((&quanto::linear<true, true>)));
  m.impl("scaled_linear", TORCH_BOX(&quanto::scaled_linear<false>));
  m.impl("scaled_linear_panels", TORCH_BOX(&quanto::scaled_linear<true>));
  m.impl("dequantize", TORCH_BOX(&quanto::dequantize<false>));
  m.impl("dequantize_panels", TORCH_BOX(&quanto::dequantize<true>));
  m.impl("embedding", TORCH_BOX(&quanto::embedding<false>));
  m.impl("embedding_panels", TORCH_BOX(&quanto::embedding<true>));
  m.impl("dynamic_quantize", TORCH_BOX(&quanto::dynamic_quantize));
  m.impl("quantize", TORCH_BOX(&quanto::quantize));
  m.impl("pack", TORCH_BOX(&quanto::pack));
  m.impl("unpack", TORCH_BOX(&quanto::unpack));
  m.impl("pack_panels", TORCH_BOX(&quanto::pack_panels));
  m.impl("unpack_panels", TORCH_BOX(&quanto::unpack_panels));
}

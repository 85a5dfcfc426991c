// SPDX-License-Identifier: Apache-2.0
// Values into codes, and codes into bytes.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "quantize.h"
#include "tensors.h"

namespace quanto {
namespace {

std::tuple<Tensor, Tensor> dynamic_quantize(const Tensor& x, const std::string& qtype, ScalarType scale_dtype) {
  const Type type = floating(x, "x");
  STD_TORCH_CHECK(qtype == "int8", "qtype must be int8, got ", qtype);
  STD_TORCH_CHECK(scale_dtype == ScalarType::Float, "scale_dtype must be float32");
  STD_TORCH_CHECK(x.dim() > 0, "x must have at least one dimension");
  const Tensor rows = dense(x);
  const int64_t k = x.size(-1);
  const int64_t count = rows_of(x);
  Tensor codes = output_like(x, k, ScalarType::Char), scales = output_like(x, 1, ScalarType::Float);
  const void* from = rows.const_data_ptr();
  auto* c = static_cast<int8_t*>(codes.mutable_data_ptr());
  auto* s = static_cast<float*>(scales.mutable_data_ptr());
  parallel(count, k * 2, [&](int64_t begin, int64_t end) {
    Subnormals guard;
    kernels().tokens(from, type, k, c, s, begin, end);
  });
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
  const auto grid = grid_of(block, n, k);
  const int64_t rows = grid.rows, group = grid.group, groups = grid.groups, scales = grid.scales;
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
    Subnormals guard;
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
  const char* name = kPack ? "codes" : "packed";
  STD_TORCH_CHECK(from.scalar_type() == ScalarType::Byte && from.dim() > 0, name, " must be uint8 of at least one dimension");
  STD_TORCH_CHECK(bits > 0 && bits < 8, "bits must be between 1 and 7, got ", bits);
  if (kPack) size = from.size(-1);
  check_size(size);
  const int64_t width = from.size(-1), bytes = (size * bits + 7) / 8;
  STD_TORCH_CHECK(kPack || width == bytes, "packed must have ", bytes, " bytes a row for ", size, " codes, got ", width);
  Tensor out = output_like(from, kPack ? bytes : size, ScalarType::Byte);
  const Tensor held = dense(from);
  const auto* in = static_cast<const uint8_t*>(held.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t rows = rows_of(from);
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

Tensor pack(const Tensor& codes, int64_t bits) { return repack<true>(codes, bits, 0); }
Tensor unpack(const Tensor& packed, int64_t bits, int64_t size) { return repack<false>(packed, bits, size); }

}  // namespace
}  // namespace quanto

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CPU, m) {
  m.impl("dynamic_quantize", TORCH_BOX(&quanto::dynamic_quantize));
  m.impl("quantize", TORCH_BOX(&quanto::quantize));
  m.impl("pack", TORCH_BOX(&quanto::pack));
  m.impl("unpack", TORCH_BOX(&quanto::unpack));
}

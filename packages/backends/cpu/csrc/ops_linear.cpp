// SPDX-License-Identifier: Apache-2.0
// Linear layers; `…_panels` take weights in the layout of format.h, the others canonical ones.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace quanto {
namespace {

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
  const int64_t count = rows_of(x);
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
  const int64_t count = rows_of(x_codes);
  STD_TORCH_CHECK(x_scale.numel() == 1 || x_scale.numel() == count, "x_scale must have 1 or ", count, " elements, got ",
                  x_scale.numel());
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
  run(kernels_for(count * held.w.n * held.w.k), held.w, x, integer ? Way::kInteger : Way::kFloat,
      static_cast<uint8_t*>(out.mutable_data_ptr()), type, b.get(), result_scale, then);
  return out;
}

}  // namespace
}  // namespace quanto

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX((&quanto::linear<false, false>)));
  m.impl("linear_panels", TORCH_BOX((&quanto::linear<true, false>)));
  m.impl("linear_integer", TORCH_BOX((&quanto::linear<false, true>)));
  m.impl("linear_integer_panels", TORCH_BOX((&quanto::linear<true, true>)));
  m.impl("scaled_linear", TORCH_BOX(&quanto::scaled_linear<false>));
  m.impl("scaled_linear_panels", TORCH_BOX(&quanto::scaled_linear<true>));
}

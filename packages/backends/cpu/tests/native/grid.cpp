// SPDX-License-Identifier: Apache-2.0
// Every kernel on a grid of small shapes, in memory of exactly the size it needs, against sums in double precision.
//
//     quanto_cpu [step]     every step-th shape of rows {1, 3, 4, 6, 8, 16} x n {1 … 128} x k {1 … 260}; default 97
//
// Built with -DQUANTO_GRID=ON, with sanitizers or for another processor; needs no torch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "rows.h"
#include "run.h"
#include "scalar.h"

namespace quanto {
void parallel_for(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }
}  // namespace quanto

using namespace quanto;

namespace {

struct Case {
  const char* qtype;
  int64_t rows, n, k, group;
  bool zero, panels;
};

// Exactly `count` elements: one read or write beyond them is what sanitizers see.
template <class T>
struct Exact {
  std::unique_ptr<T[]> data;
  explicit Exact(int64_t count) : data(new T[count > 0 ? count : 1]()) {}
  T* get() { return data.get(); }
  T& operator[](int64_t i) { return data[i]; }
};

// Takes subnormal numbers for zero, as torch.set_flush_denormal(True) lets the processor do.
class Flushing {
 public:
#if defined(QUANTO_X86)
  Flushing() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~Flushing() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  Flushing() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | uint64_t{1} << 24));
  }
  ~Flushing() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  Flushing() {}
#endif
};

int failures = 0;

void complain(const Case& c, const char* what, double error) {
  if (++failures < 20) {
    std::printf("%s: %s rows=%lld n=%lld k=%lld group=%lld zero=%d panels=%d: error %g\n", what, c.qtype, (long long)c.rows,
                (long long)c.n, (long long)c.k, (long long)c.group, c.zero, c.panels, error);
  }
}

void run_case(const Case& c, std::mt19937& random) {
  const Format& f = *find_format(c.qtype);
  Weight w;
  w.format = &f;
  w.n = c.n, w.k = c.k, w.group = std::min(c.group, c.k);
  w.groups = divide_up(c.k, w.group);
  w.units = divide_up(w.group, f.unit);
  w.stride = (c.k * f.bits + 7) / 8;
  w.scale_stride = w.groups;
  Exact<uint8_t> codes(c.n * w.stride);
  for (int64_t i = 0; i < c.n * w.stride; ++i) codes[i] = static_cast<uint8_t>(random());
  if (f.code >= Code::kE4M3) {
    for (int64_t i = 0; i < c.n * w.stride; ++i) codes[i] = (codes[i] & 0x83) | 0x30;  // finite, around 1
  }
  if (const int64_t used = c.k * f.bits % 8) {
    for (int64_t row = 0; row < c.n; ++row) codes[(row + 1) * w.stride - 1] &= static_cast<uint8_t>((1 << used) - 1);
  }
  Exact<float> scale(c.n * w.groups);
  Exact<int8_t> zero(c.n * w.groups);
  for (int64_t i = 0; i < c.n * w.groups; ++i) {
    scale[i] = 0.5f + static_cast<float>(random() % 1000) / 1000;
    zero[i] = static_cast<int8_t>(static_cast<int>(random() % 7) - 3);
  }
  w.codes = codes.get(), w.scale = scale.get();
  if (c.zero && f.code <= Code::kInt2) w.zero = zero.get(), w.zero_type = Type::kInt8;

  std::vector<double> values(c.n * c.k);
  const RowDecoder decode(w);
  Exact<float> row_values(c.k);
  for (int64_t row = 0; row < c.n; ++row) {
    decode(row, row_values.get(), Type::kFloat);
    for (int64_t i = 0; i < c.k; ++i) values[row * c.k + i] = row_values[i];
  }

  const int64_t bytes = panel_bytes(w) / kRows;
  Exact<uint8_t> packed(c.n * bytes);
  Exact<float> packed_scale(c.n * w.groups);
  Exact<int8_t> packed_zero(c.n * w.groups);
  Weight p = w;
  if (c.panels) {
    for (int64_t panel = 0; panel < c.n / kRows; ++panel) {
      const int64_t row = panel * kRows;
      pack_panel(w, panel, packed.get() + row * bytes, reinterpret_cast<uint8_t*>(packed_scale.get() + row * w.groups),
                 reinterpret_cast<uint8_t*>(packed_zero.get() + row * w.groups));
    }
    for (int64_t row = c.n / kRows * kRows; row < c.n; ++row) {
      std::copy_n(codes.get() + row * w.stride, w.stride, packed.get() + row * bytes);
      std::copy_n(scale.get() + row * w.groups, w.groups, packed_scale.get() + row * w.groups);
      std::copy_n(zero.get() + row * w.groups, w.groups, packed_zero.get() + row * w.groups);
    }
    p.codes = packed.get(), p.scale = packed_scale.get(), p.stride = bytes, p.ready = c.n / kRows;
    if (p.zero) p.zero = packed_zero.get();
    Exact<uint8_t> back(c.n * w.stride);
    for (int64_t panel = 0; panel < p.ready; ++panel) unpack_panel(p, panel, back.get(), w.stride);
    for (int64_t i = 0; i < p.ready * kRows * w.stride; ++i) {
      if (back[i] != codes[i]) return complain(c, "codes are not given back", static_cast<double>(i));
    }
  }

  Exact<float> x(c.rows * c.k), bias(c.n), y(c.rows * c.n), x_scale(c.rows);
  Exact<int8_t> x_codes(c.rows * c.k);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < c.rows * c.k; ++i) x[i] = normal(random), x_codes[i] = static_cast<int8_t>(random());
  for (int64_t i = 0; i < c.rows; ++i) x_scale[i] = 0.5f + static_cast<float>(i % 3), x_codes[i * c.k] = -128;
  for (int64_t i = 0; i < c.n; ++i) bias[i] = normal(random);
  // `floor`: what an offset of codes may cost.
  const auto check = [&](const char* what, double limit, double floor = 0) {
    for (int64_t m = 0; m < c.rows; ++m) {
      for (int64_t n = 0; n < c.n; ++n) {
        double sum = bias[n], unit = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double product = x[m * c.k + k] * values[n * c.k + k];
          sum += product, unit += product * product;
        }
        const double error = std::fabs(y[m * c.n + n] - sum) / (std::sqrt(unit) + std::fabs(bias[n]) + floor / limit + 1e-30);
        if (!(error < limit)) return complain(c, what, error);
      }
    }
  };
  const Rows rows{reinterpret_cast<const uint8_t*>(x.get()), Type::kFloat, c.rows};
  auto* out = reinterpret_cast<uint8_t*>(y.get());
  for (const Way way : {Way::kFloat, Way::kBlocks}) {
    run(kernels(), p, rows, way, out, Type::kFloat, bias.get(), 0);
    check(way == Way::kFloat ? "few" : "blocks", 2e-5);
  }
  for (const float above : {0.f, 300.f, 1e5f, 1e9f}) {  // one row: three digits, four, and floats
    if (c.rows > 1) break;
    const float usual = std::exchange(x[c.k / 2], above);
    run(kernels(), p, rows, Way::kFloat, out, Type::kFloat, bias.get(), 0);
    check("digits", 2e-5, 2e-5 * above);
    x[c.k / 2] = usual;
  }
  Exact<uint16_t> half(c.rows * c.k);
  for (int64_t i = 0; i < c.rows * c.k; ++i) half[i] = float_to_bfloat16(x[i]), x[i] = bfloat16_to_float(half[i]);
  run(kernels(), p, {reinterpret_cast<const uint8_t*>(half.get()), Type::kBFloat16, c.rows}, Way::kFloat, out, Type::kFloat, bias.get(), 0);
  check("bfloat16", 2e-5);
  if (f.byte_scale != 0 && c.k >= 64) {
    run(kernels(), p, rows, Way::kInteger, out, Type::kFloat, bias.get(), 0);
    check("integer", 0.08);
  }
  if (f.code <= Code::kInt2 || f.code == Code::kSmallTable) {  // int8 from outside: all of their range, one scale a row
    const Rows codes_in{reinterpret_cast<const uint8_t*>(x_codes.get()), Type::kInt8, c.rows, x_scale.get(), true};
    run(kernels(), p, codes_in, Way::kInteger, out, Type::kFloat, bias.get(), 0, Nonlinearity::kGelu);
    Exact<float> through(c.rows * c.n);
    std::copy_n(y.get(), c.rows * c.n, through.get());
    run(kernels(), p, codes_in, Way::kInteger, out, Type::kFloat, bias.get(), 0);
    for (int64_t i = 0; i < c.rows * c.n; ++i) {
      const double want = 0.5 * y[i] * std::erfc(-y[i] / std::sqrt(2.));
      if (std::fabs(through[i] - want) > 1e-5 * std::fabs(want) + 1e-6) return complain(c, "gelu", through[i] - want);
    }
    for (int64_t i = 0; i < c.rows * c.k; ++i) x[i] = static_cast<float>(x_codes[i]) * x_scale[i / c.k];
    check("int8 activations", 2e-5);
  }
  Exact<float> whole(c.n * c.k);
  kernels().dequantize(p, 0, p.panels(), whole.get(), Type::kFloat);
  for (int64_t i = 0; i < c.n * c.k; ++i) {
    if (std::fabs(whole[i] - values[i]) > 2e-6 * std::fabs(values[i]) + 1e-6) return complain(c, "dequantize", whole[i] - values[i]);
  }
}

// Numbers below the smallest normal one, while the processor is told to take such for zero: float8 codes, and activations
// and scales of float16.
void run_subnormal() {
  constexpr int64_t kRowsOfX = 5, n = 20, k = 64;
  const Case c{"float8_e4m3fn", kRowsOfX, n, k, k, false, false};
  Exact<uint8_t> codes(n * k);
  Exact<uint16_t> x(kRowsOfX * k), scale(n);
  for (int64_t i = 0; i < n * k; ++i) codes[i] = static_cast<uint8_t>(i % 8);           // all below 2^-6
  for (int64_t i = 0; i < kRowsOfX * k; ++i) x[i] = static_cast<uint16_t>(1 + i % 3);   // times 2^-24
  for (int64_t i = 0; i < n; ++i) scale[i] = static_cast<uint16_t>(0x200 + i);          // a little above 2^-15
  Weight w;
  w.format = find_format(c.qtype);
  w.n = n, w.k = w.group = w.stride = k, w.groups = 1, w.units = k / 4, w.scale_stride = 1;
  w.codes = codes.get(), w.scale = scale.get(), w.scale_type = Type::kHalf;
  Exact<float> y(kRowsOfX * n);
  for (const Way way : {Way::kFloat, Way::kBlocks}) {
    {
      const Flushing flushing;
      run(kernels(), w, {reinterpret_cast<const uint8_t*>(x.get()), Type::kHalf, kRowsOfX}, way,
          reinterpret_cast<uint8_t*>(y.get()), Type::kFloat, nullptr, 0);
    }
    for (int64_t m = 0; m < kRowsOfX; ++m) {
      for (int64_t row = 0; row < n; ++row) {
        double want = 0;
        for (int64_t i = 0; i < k; ++i) want += std::ldexp(1. + (m * k + i) % 3, -24) * std::ldexp((row * k + i) % 8, -9);
        want *= std::ldexp(512. + row, -24);
        if (std::fabs(y[m * n + row] - want) > 1e-5 * want) return complain(c, "subnormal", y[m * n + row] / want - 1);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int step = argc > 1 ? std::atoi(argv[1]) : 97;
  const char* qtypes[] = {"int8", "int4", "int3", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2fnuz"};
  std::mt19937 random(0);
  std::stringstream names(available_kernels());
  for (std::string name; std::getline(names, name, ',');) {
    select_kernels(name.c_str());
    run_subnormal();
    long long shape = 0, done = 0;
    for (const int64_t rows : {1, 3, 4, 6, 8, 16}) {
      for (int64_t n = 1; n <= 128; ++n) {
        for (int64_t k = 1; k <= 260; ++k) {
          if (shape++ % step) continue;
          const int64_t groups[] = {k, 16, 32, 37, 128};
          run_case({qtypes[done % 8], rows, n, k, groups[done / 8 % 5], done % 3 == 0, done % 2 == 0}, random);
          ++done;
        }
      }
    }
    std::printf("%s: %lld shapes, %d failures\n", name.c_str(), done, failures);
  }
  return failures ? 1 : 0;
}

// SPDX-License-Identifier: Apache-2.0
// What Python cannot measure or do: read memory as fast as a core can, multiply int8 in registers, and present an older
// processor to a whole process.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

// Adds up `bytes` in `streams` places at once, 256 bytes at each; a multiple of 4096 * streams is read.
__attribute__((target("avx2"))) uint64_t read_bytes(const uint8_t* p, size_t bytes, int streams) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  const size_t each = bytes / streams & ~(size_t)4095;
  for (size_t i = 0; i < each; i += 256) {
    for (int s = 0; s < streams; ++s) {
      const __m256i* at = (const __m256i*)(p + s * each + i);
      for (int j = 0; j < 8; ++j) sum[j & 3] = _mm256_add_epi64(sum[j & 3], _mm256_loadu_si256(at + j));
    }
  }
  const __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  return (uint64_t)(all[0] + all[1] + all[2] + all[3]);
}

// Multiplies int8 by int8 into int32, `count` vectors; returns how many multiply-adds a vector holds. 0: not here.
__attribute__((target("avx2"))) static int dot_avx2(size_t count, int32_t* out) {
  __m256i sum[8], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  const __m256i one = _mm256_set1_epi16(1);
  for (int j = 0; j < 8; ++j) sum[j] = _mm256_setzero_si256();
  for (size_t i = 0; i < count; i += 8) {
    for (int j = 0; j < 8; ++j) {
      __asm__("" : "+x"(a));  // or the compiler computes the product once
      sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), one));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_add_epi32(sum[0], sum[j]);
  *out = _mm256_extract_epi32(sum[0], 0);
  return 32;
}

__attribute__((target("avx512f,avx512vnni"))) static int dot_avx512(size_t count, int32_t* out) {
  __m512i sum[12], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (int j = 0; j < 12; ++j) sum[j] = _mm512_setzero_si512();
  for (size_t i = 0; i < count; i += 12) {
    for (int j = 0; j < 12; ++j) {
      __asm__("" : "+v"(a));
      sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
    }
  }
  for (int j = 1; j < 12; ++j) sum[0] = _mm512_add_epi32(sum[0], sum[j]);
  *out = _mm_cvtsi128_si32(_mm512_castsi512_si128(sum[0]));
  return 64;
}

int dot(int avx512, size_t count, int32_t* out) { return avx512 ? dot_avx512(count, out) : dot_avx2(count, out); }

#else

uint64_t read_bytes(const uint8_t* p, size_t bytes, int streams) {
  const size_t each = bytes / streams & ~(size_t)4095;
  uint64_t sum[8] = {0};
  for (size_t i = 0; i < each; i += 64) {
    for (int s = 0; s < streams; ++s) {
      const uint64_t* at = (const uint64_t*)(p + s * each + i);
      for (int j = 0; j < 8; ++j) sum[j] += at[j];
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] += sum[j];
  return sum[0];
}

int dot(int avx512, size_t count, int32_t* out) { return 0; }

#endif

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// arch_prctl(2): makes the instruction CPUID fault in this thread and those that it starts.
static int set_fault(int on) { return (int)syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, on ? 0UL : 1UL); }

#define BIT(n) (1u << (n))

static void answer(int number, siginfo_t* info, void* context) {
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* at = (const uint8_t*)r[REG_RIP];
  (void)info;
  if (at[0] != 0x0f || at[1] != 0xa2) {  // no CPUID: a true fault
    signal(number, SIG_DFL);
    return;
  }
  const uint32_t leaf = (uint32_t)r[REG_RAX], sub = (uint32_t)r[REG_RCX];
  uint32_t a, b, c, d;
  set_fault(0);
  __cpuid_count(leaf, sub, a, b, c, d);
  set_fault(1);
  if (leaf == 7 && sub == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));           // AVX-512
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                          // and VNNI
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));                       // FP16, AMX
  } else if (leaf == 7 && sub == 1) {
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));   // AVX-VNNI, AVX-512 BF16, AMX FP16, AVX-IFMA
    d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19) | BIT(21));  // AVX-VNNI-INT8, NE-CONVERT, AMX, INT16, AVX10, APX
  } else if (leaf == 0x24) {
    a = b = c = d = 0;  // AVX10
  }
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

// From here on CPUID tells this process of a processor with AVX2 and FMA, without AVX-512, VNNI and AMX. Returns 0 where
// processor or kernel cannot do that. Libraries that were loaded before have asked already.
int mask_to_avx2(void) {
  struct sigaction action = {0};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, NULL);
  if (set_fault(1) == 0) return 1;
  signal(SIGSEGV, SIG_DFL);
  return 0;
}

#else

int mask_to_avx2(void) { return 0; }

#endif

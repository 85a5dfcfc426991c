// SPDX-License-Identifier: Apache-2.0
// Every access to memory that a shader makes, looked at: compiled with -fsanitize=thread, which calls a function for each,
// and linked with these functions in place of that sanitizer's.
//
// - An access to a buffer must lie within it; one that lies beside it is an error.
// - An access to threadgroup memory must not meet another thread's to the same word since the last barrier, unless both
//   read: what is left out is seen whatever the order of the threads was.
// - Bytes are counted by buffer, as they are read, and as a simdgroup moves them: lanes that read the same address in one
//   instruction move it once. An instruction is a place in the code together with how often its lane has been there.
#pragma once

#ifdef SHIM_CHECKED

#include <algorithm>
#include <unordered_map>

namespace shim {

struct Buffer {
    char* from;
    size_t size;
    uint64_t read = 0, written = 0, moved = 0;
};

constexpr long BESIDE = 1 << 12;

inline thread_local std::vector<Buffer> buffers;
inline thread_local std::unordered_map<uint64_t, std::vector<const char*>> instructions;

inline SHIM_PLAIN void move(Buffer& b, const char* at, size_t size, const void* code) {
    if (!machine.now) {
        b.moved += size;
        return;
    }
    const uint64_t place = reinterpret_cast<uint64_t>(code);
    const Place& me = machine.now->place;
    const uint64_t turn = machine.now->visits[place]++;
    uint64_t key = place;
    for (uint64_t part : {turn, uint64_t(me.simdgroup), uint64_t(me.group[0]), uint64_t(me.group[1])}) {
        key = (key ^ part) * 0x9e3779b97f4a7c15ull;
        key ^= key >> 29;
    }
    std::vector<const char*>& seen = instructions[key];
    if (std::find(seen.begin(), seen.end(), at) == seen.end()) {
        seen.push_back(at);
        b.moved += size;
    }
}

inline SHIM_PLAIN void examine(const char* at, size_t size, bool write, const void* code) {
    for (Buffer& b : buffers) {
        if (at >= b.from && at < b.from + b.size) {
            if (at + size > b.from + b.size) {
                return fail("an access reaches beyond the end of a buffer");
            }
            (write ? b.written : b.read) += size;
            return write ? void() : move(b, at, size, code);
        }
    }
    for (Span& s : machine.shared) {
        if (at >= s.from && at < s.from + s.size) {
            if (at + size > s.from + s.size) {
                return fail("an access reaches beyond the end of threadgroup memory");
            }
            const unsigned me = machine.now->place.index + 1;
            const size_t first = size_t(at - s.from) / 4, last = (size_t(at - s.from) + size - 1) / 4;
            for (size_t word = first; word <= last; ++word) {
                Word& w = s.words[word];
                if (w.epoch != machine.epoch) {
                    w = Word{machine.epoch, 0, 0};
                }
                const bool others_wrote = w.writer && w.writer != me, others_read = w.reader && w.reader != me;
                if (others_wrote || (write && others_read)) {
                    return fail("threads meet in a word of threadgroup memory without a barrier between them");
                }
                unsigned& who = write ? w.writer : w.reader;
                who = !write && who && who != me ? EVERYBODY : me;
            }
            return;
        }
    }
    for (const Buffer& b : buffers) {
        const char* stack = machine.now ? machine.now->stack : nullptr;
        const bool own = stack && at >= stack && at < stack + STACK;
        if (!own && at - b.from > -BESIDE && at - (b.from + b.size) < BESIDE) {
            return fail("an access lies beside a buffer");
        }
    }
}

inline SHIM_PLAIN void look(const char* at, size_t size, bool write, const void* code) {
    if (inside) {  // the containers used here are compiled with the same calls
        leave();
        examine(at, size, write, code);
        enter();
    }
}

}  // namespace shim

extern "C" {

SHIM_PLAIN void shim_watch(int count, void** from, const size_t* size) {
    shim::buffers.clear();
    shim::instructions.clear();
    shim::machine.now = nullptr;
    for (shim::Fiber& f : shim::machine.fibers) {
        f.visits.clear();
    }
    for (int i = 0; i < count; ++i) {
        shim::buffers.push_back({static_cast<char*>(from[i]), size[i]});
    }
}

SHIM_PLAIN void shim_seen(uint64_t* read, uint64_t* written, uint64_t* moved) {
    for (size_t i = 0; i < shim::buffers.size(); ++i) {
        read[i] = shim::buffers[i].read;
        written[i] = shim::buffers[i].written;
        moved[i] = shim::buffers[i].moved;
    }
    shim::buffers.clear();
}

#define SHIM_ACCESS(NAME, SIZE, WRITE)                                                                    \
    SHIM_PLAIN void NAME(void* at) {                                                                      \
        shim::look(static_cast<const char*>(at), SIZE, WRITE, __builtin_return_address(0));               \
    }
#define SHIM_ACCESSES(SIZE)                                                                               \
    SHIM_ACCESS(__tsan_read##SIZE, SIZE, false)                                                           \
    SHIM_ACCESS(__tsan_write##SIZE, SIZE, true)                                                           \
    SHIM_ACCESS(__tsan_unaligned_read##SIZE, SIZE, false)                                                 \
    SHIM_ACCESS(__tsan_unaligned_write##SIZE, SIZE, true)

SHIM_ACCESSES(1)
SHIM_ACCESSES(2)
SHIM_ACCESSES(4)
SHIM_ACCESSES(8)
SHIM_ACCESSES(16)

SHIM_PLAIN void __tsan_read_range(void* at, size_t size) {
    shim::look(static_cast<const char*>(at), size, false, __builtin_return_address(0));
}
SHIM_PLAIN void __tsan_write_range(void* at, size_t size) {
    shim::look(static_cast<const char*>(at), size, true, __builtin_return_address(0));
}
SHIM_PLAIN void __tsan_init() {}
SHIM_PLAIN void __tsan_func_entry(void*) {}
SHIM_PLAIN void __tsan_func_exit() {}
SHIM_PLAIN void __tsan_vptr_update(void**, void*) {}
SHIM_PLAIN void __tsan_vptr_read(void**) {}

}  // extern "C"

#endif  // SHIM_CHECKED

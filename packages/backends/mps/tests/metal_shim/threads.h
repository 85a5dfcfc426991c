// SPDX-License-Identifier: Apache-2.0
// The threads of a threadgroup as fibers of one thread of the CPU.
//
// A fiber runs until it meets the others, at a barrier or in an operation of its simdgroup, or until it returns. What
// must not happen on a GPU is an error here: lanes of a simdgroup in different operations, or a thread that has
// returned while others wait for it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <unordered_map>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <ucontext.h>
#endif

#define SHIM_PLAIN __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))

namespace shim {

constexpr int LANES = 32, MOST_THREADS = 1024, STACK = 1 << 16, SLOT = 32;

#if defined(__x86_64__)
// Saves what a function must preserve and the stack, and goes on with another.
asm(R"(
.text
.local quanto_shim_switch
quanto_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void quanto_shim_switch(void** from, void* to);
struct Context {
    void* at = nullptr;
};
inline SHIM_PLAIN void prepare(Context& c, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK - 64);
    *--top = nullptr;  // the return address of `entry`, which never returns
    *--top = reinterpret_cast<void*>(entry);
    c.at = top - 6;
}
inline SHIM_PLAIN void change(Context& from, Context& to) { quanto_shim_switch(&from.at, to.at); }
#else
struct Context {
    ucontext_t at;
};
inline SHIM_PLAIN void prepare(Context& c, char* stack, void (*entry)()) {
    getcontext(&c.at);
    c.at.uc_stack.ss_sp = stack;
    c.at.uc_stack.ss_size = STACK;
    c.at.uc_link = nullptr;
    makecontext(&c.at, entry, 0);
}
inline SHIM_PLAIN void change(Context& from, Context& to) { swapcontext(&from.at, &to.at); }
#endif

struct Place {
    unsigned grid[3], group[3], within[3];
    unsigned index, simdgroup, lane;
};

struct Simdgroup {
    alignas(16) char slots[2][LANES][SLOT];
    int waiting = 0, turn = 0;
    const char* what = nullptr;
};

enum class State { ready, in_simdgroup, in_group, done };

struct Fiber {
    Context context;
    char* stack = nullptr;
    State state = State::done;
    Place place;
    std::unordered_map<uint64_t, uint64_t> visits;  // of places in the code: see checked.h
};

// Who has touched a word of threadgroup memory since the last barrier: a thread's index + 1, or more than one.
struct Word {
    unsigned epoch, writer, reader;
};
constexpr unsigned EVERYBODY = ~0u;

struct Span {
    char* from;
    size_t size;
    std::vector<Word> words;
};

struct Machine {
    Context scheduler;
    std::vector<Fiber> fibers;
    std::vector<Simdgroup> simdgroups;
    std::vector<Span> shared;
    const std::function<void(const Place&)>* run = nullptr;
    Fiber* now = nullptr;
    int threads = 0, waiting = 0;
    unsigned epoch = 0;  // of barriers
    char error[256] = "";

    ~Machine() {
        for (Fiber& f : fibers) {
            munmap(f.stack, STACK);
        }
    }
};

inline thread_local Machine machine;

// Whether a shader runs, rather than what stands in for the GPU around it. Apart from the machine, whose constructor is
// itself code that checked.h would look at.
static thread_local bool inside = false;

inline SHIM_PLAIN void fail(const char* what, const char* detail = "") {
    if (!machine.error[0]) {
        std::snprintf(machine.error, sizeof machine.error, "%s%s", what, detail);
    }
}

inline SHIM_PLAIN int lane() { return int(machine.now->place.lane); }

inline SHIM_PLAIN void pause() { change(machine.now->context, machine.scheduler); }

inline SHIM_PLAIN void enter() { inside = true; }
inline SHIM_PLAIN void leave() { inside = false; }

inline SHIM_PLAIN void fiber_main() {
    for (;;) {
        (*machine.run)(machine.now->place);
        machine.now->state = State::done;
        pause();
    }
}

// Threadgroup memory: NaN when a group begins.
inline SHIM_PLAIN void fresh(void* at, size_t size) {
    leave();
    for (const Span& s : machine.shared) {
        if (s.from == at) {
            return enter();
        }
    }
    machine.shared.push_back({static_cast<char*>(at), size, {}});
#ifdef SHIM_CHECKED
    machine.shared.back().words.assign(size / 4 + 1, Word{0, 0, 0});
#endif
    std::memset(at, 0xff, size);
    enter();
}

inline SHIM_PLAIN void meet_simdgroup(const char* what) {
    leave();
    Fiber& me = *machine.now;
    Simdgroup& mine = machine.simdgroups[me.place.simdgroup];
    if (mine.waiting && mine.what != what && std::strcmp(mine.what, what)) {
        fail("lanes of one simdgroup are in different operations, one of them ", what);
    }
    mine.what = what;
    if (++mine.waiting == LANES) {
        mine.waiting = 0;
        Fiber* first = &machine.fibers[me.place.simdgroup * LANES];
        for (int i = 0; i < LANES; ++i) {
            first[i].state = State::ready;
        }
    } else {
        me.state = State::in_simdgroup;
    }
    pause();
    enter();
}

// Every lane gives a value; every lane gets all of them, until the operation after the next.
template <typename T>
inline SHIM_PLAIN const T* exchange(const char* what, T v) {
    static_assert(sizeof(T) <= SLOT, "fits a slot");
    leave();
    Simdgroup& mine = machine.simdgroups[machine.now->place.simdgroup];
    const int turn = mine.turn;
    T* all = reinterpret_cast<T*>(mine.slots[turn]);
    all[machine.now->place.lane] = v;
    if (mine.waiting == LANES - 1) {
        mine.turn = !turn;
    }
    meet_simdgroup(what);
    return all;
}

inline SHIM_PLAIN void meet_group() {
    leave();
    if (++machine.waiting == machine.threads) {
        machine.waiting = 0;
        ++machine.epoch;
        for (int i = 0; i < machine.threads; ++i) {
            machine.fibers[i].state = State::ready;
        }
    } else {
        machine.now->state = State::in_group;
    }
    pause();
    enter();
}

inline SHIM_PLAIN void run_group(
    const std::function<void(const Place&)>& run, Place first, const unsigned* size, unsigned seed
) {
    Machine& m = machine;
    m.fibers.reserve(MOST_THREADS);  // contexts must not move
    m.threads = int(size[0] * size[1] * size[2]);
    while (int(m.fibers.size()) < m.threads) {
        m.fibers.emplace_back();
        Fiber& f = m.fibers.back();
        f.stack = static_cast<char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        prepare(f.context, f.stack, fiber_main);
    }
    m.simdgroups.assign((m.threads + LANES - 1) / LANES, Simdgroup());
    m.shared.clear();
    m.run = &run;
    m.waiting = 0;
    ++m.epoch;
    for (int i = 0; i < m.threads; ++i) {
        Place p = first;
        p.index = unsigned(i);
        p.simdgroup = p.index / LANES;
        p.lane = p.index % LANES;
        const unsigned at[3] = {p.index % size[0], p.index / size[0] % size[1], p.index / (size[0] * size[1])};
        for (int d = 0; d < 3; ++d) {
            p.within[d] = at[d];
            p.grid[d] = first.grid[d] + at[d];
        }
        m.fibers[i].place = p;
        m.fibers[i].visits.clear();
        m.fibers[i].state = State::ready;
    }
    // 0, step, 2 step, … is every thread once where step is odd: threads are a multiple of 32
    const int step = int(seed * 2654435761u >> 8 | 1) % m.threads | 1, begin = int(seed % unsigned(m.threads));
    for (int done = 0; done < m.threads && !m.error[0];) {
        bool moved = false;
        for (int turn = 0, i = begin; turn < m.threads; ++turn, i = (i + step) % m.threads) {
            Fiber& f = m.fibers[i];
            if (f.state == State::ready) {
                m.now = &f;
                moved = true;
                change(m.scheduler, f.context);
                done += f.state == State::done;
            }
        }
        if (!moved && done < m.threads) {
            fail("threads wait for others that have returned or wait elsewhere");
        }
    }
    if (m.error[0]) {  // fibers are in the middle of something: never used again
        m.fibers.clear();
    }
}

// Runs `threads` in groups of `size`, those at the edges smaller where they don't divide: dispatchThreads of Metal.
inline SHIM_PLAIN const char* dispatch(
    const std::function<void(const Place&)>& run, const unsigned* threads, const unsigned* size, bool together
) {
    machine.error[0] = 0;
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);  // flush subnormals to zero, results and operands
#endif
    unsigned seed = 1;
    Place p{};
    for (p.group[2] = 0; p.group[2] * size[2] < threads[2]; ++p.group[2]) {
        for (p.group[1] = 0; p.group[1] * size[1] < threads[1]; ++p.group[1]) {
            for (p.group[0] = 0; p.group[0] * size[0] < threads[0]; ++p.group[0]) {
                unsigned here[3];
                for (int d = 0; d < 3; ++d) {
                    p.grid[d] = p.group[d] * size[d];
                    here[d] = threads[d] - p.grid[d] < size[d] ? threads[d] - p.grid[d] : size[d];
                }
                if (together) {
                    run_group(run, p, here, seed++);
                    if (machine.error[0]) {
                        break;
                    }
                    continue;
                }
                Place own = p;
                for (unsigned z = 0; z < here[2]; ++z) {
                    for (unsigned y = 0; y < here[1]; ++y) {
                        for (unsigned x = 0; x < here[0]; ++x) {
                            own.grid[0] = p.grid[0] + x;
                            own.grid[1] = p.grid[1] + y;
                            own.grid[2] = p.grid[2] + z;
                            run(own);
                        }
                    }
                }
            }
        }
    }
#if defined(__x86_64__)
    _mm_setcsr(before);
#endif
    return machine.error[0] ? machine.error : nullptr;
}

}  // namespace shim

// CUDA's kernel language for a host's compiler, as far as the sampler's kernels use it: a block's
// threads are fibers that take turns at its barriers, blocks run one after the other. Shows what a
// kernel computes, barriers that not all threads reach, and many that are missing. To be
// included before the kernels.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

#include "parallel/base/status.h"

namespace polyreme::on_host {

struct Index {
  unsigned x = 0;
};

// Runs the threads of one block at a time.
class Block {
 public:
  static Block& Current() {
    static Block block;
    return block;
  }
  void Run(unsigned block, unsigned threads, const std::function<void()>& body) {
    body_ = &body;
    block_index.x = block;
    block_size.x = threads;
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    for (unsigned i = 0; i < threads; ++i) fibers_[i]->state = State::kNew;
    while (RunRound(threads)) Release(threads);
  }
  void WaitForBlock() { Wait(State::kAtBlock); }
  void WaitForWarp() { Wait(State::kAtWarp); }

  // What lane `from` of this thread's warp has said; every lane says something.
  template <class T>
  T Exchange(T value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const unsigned warp = thread_index.x / 32 * 32;
    const unsigned turn = fibers_[thread_index.x]->turn++ % 2;  // two slots: one barrier is enough
    std::memcpy(&fibers_[thread_index.x]->said[turn], &value, sizeof(T));
    WaitForWarp();
    T heard;
    std::memcpy(&heard, &fibers_[warp + from]->said[turn], sizeof(T));
    return heard;
  }

  Index thread_index;
  Index block_index;
  Index block_size;

 private:
  enum class State : uint8_t { kNew, kRunnable, kAtBlock, kAtWarp, kDone };
  struct Fiber {
    State state = State::kNew;
    unsigned turn = 0;
    uint64_t said[2] = {};
    ucontext_t start;
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[kStack]};
  };
  static constexpr size_t kStack = 96 << 10;

  static void Enter() {
    Block& block = Current();
    (*block.body_)();
    block.fibers_[block.thread_index.x]->state = State::kDone;
    _longjmp(block.home_, 1);
  }
  void Wait(State why) {
    Fiber& fiber = *fibers_[thread_index.x];
    fiber.state = why;
    if (_setjmp(fiber.place) == 0) _longjmp(home_, 1);
  }
  void Resume(unsigned thread) {
    thread_index.x = thread;
    Fiber& fiber = *fibers_[thread];
    if (_setjmp(home_) != 0) return;
    if (fiber.state == State::kRunnable) _longjmp(fiber.place, 1);
    fiber.turn = 0;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Block::Enter, 0);
    setcontext(&fiber.start);
  }
  // Whether any thread is still on its way.
  bool RunRound(unsigned threads) {
    bool waits = false;
    for (unsigned i = 0; i < threads; ++i) {
      // Every second block the other way round: a missing barrier changes the answer in one of
      // them.
      const unsigned thread = block_index.x % 2 == 0 ? i : threads - 1 - i;
      const State state = fibers_[thread]->state;
      if (state == State::kNew || state == State::kRunnable) Resume(thread);
      waits = waits || fibers_[thread]->state != State::kDone;
    }
    return waits;
  }
  bool ReleaseIfAll(unsigned begin, unsigned end, State where) {
    for (unsigned i = begin; i < end; ++i) {
      if (fibers_[i]->state != where) return false;
    }
    for (unsigned i = begin; i < end; ++i) fibers_[i]->state = State::kRunnable;
    return true;
  }
  void Release(unsigned threads) {
    bool released = ReleaseIfAll(0, threads, State::kAtBlock);
    for (unsigned warp = 0; warp < threads && !released; warp += 32) {
      for (unsigned w = warp; w < threads; w += 32) {
        released = ReleaseIfAll(w, w + 32, State::kAtWarp) || released;
      }
    }
    CHECK(released, "block {}: a barrier that not all threads reach", block_index.x);
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  jmp_buf home_;
};

// kernel<<<blocks, threads>>>(arguments...)
template <class... Formal, class... Actual>
void Launch(void (*kernel)(Formal...), int blocks, int threads, const Actual&... arguments) {
  for (int block = 0; block < blocks; ++block) {
    Block::Current().Run(static_cast<unsigned>(block), static_cast<unsigned>(threads),
                         [&] { kernel(arguments...); });
  }
}

}  // namespace polyreme::on_host

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define threadIdx (::polyreme::on_host::Block::Current().thread_index)
#define blockIdx (::polyreme::on_host::Block::Current().block_index)
#define blockDim (::polyreme::on_host::Block::Current().block_size)

struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads() {
  ::polyreme::on_host::Block::Current().WaitForBlock();
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  const unsigned lane = threadIdx.x % 32;
  return ::polyreme::on_host::Block::Current().Exchange(value, lane ^ static_cast<unsigned>(lanes));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int lanes) {
  const unsigned lane = threadIdx.x % 32;
  const auto up = static_cast<unsigned>(lanes);
  return ::polyreme::on_host::Block::Current().Exchange(value, lane >= up ? lane - up : lane);
}
template <class T, class U>
T atomicAdd(T* place, U value) {
  const T old = *place;
  *place = static_cast<T>(old + value);
  return old;
}
inline int atomicMin(int* place, int value) {
  const int old = *place;
  if (value < old) *place = value;
  return old;
}

// The scheduler of the shim: a fiber for every thread of a block.
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_shim {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kWarpSize = 32, kMostThreads = 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// makecontext gives a fiber its stack, once; switches are made by _setjmp, which unlike swapcontext asks nothing of the
// kernel. A fiber never ends: it waits for the next block.
struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf here;
  State state = State::kDone;
  unsigned mask = 0;  // lanes that its warp barrier waits for
  bool begun = false;
  ucontext_t context;
};

struct Warp {
  unsigned slots[2][kWarpSize];  // in turns, so that a lane which is ahead overwrites nothing
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<unsigned> turns;  // exchanges that each thread has made
std::map<const void*, std::vector<std::max_align_t>> shared_parts;
std::vector<std::max_align_t> dynamic_part;
const std::function<void()>* body;
unsigned current, threads;
jmp_buf scheduler;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "cuda_shim: block %u, thread %u: %s\n", blockIdx.x, current, message);
  std::exit(1);
}

void switch_to_scheduler() {
  if (_setjmp(fibers[current]->here) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  while (true) {
    (*body)();
    fibers[current]->state = State::kDone;
    switch_to_scheduler();
  }
}

void wait(State state, unsigned mask) {
  fibers[current]->state = state;
  fibers[current]->mask = mask;
  switch_to_scheduler();
}

void resume(unsigned thread) {
  current = thread;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y));
  Fiber& fiber = *fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.stack = std::make_unique<char[]>(kStackBytes);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  setcontext(&fiber.context);
}

unsigned count(State state) {
  unsigned count = 0;
  for (unsigned t = 0; t < threads; ++t) count += fibers[t]->state == state;
  return count;
}

bool release_warp(unsigned first) {
  const unsigned lanes = std::min(kWarpSize, threads - first);
  bool released = false;
  for (unsigned l = 0; l < lanes; ++l) {
    if (fibers[first + l]->state != State::kAtWarpBarrier) continue;
    const unsigned mask = fibers[first + l]->mask;
    bool complete = mask >> l & 1;
    for (unsigned k = 0; k < lanes && complete; ++k) {
      const Fiber& other = *fibers[first + k];
      complete = !(mask >> k & 1) || (other.state == State::kAtWarpBarrier && other.mask == mask);
    }
    if (!complete) continue;
    for (unsigned k = 0; k < lanes; ++k) {
      if (mask >> k & 1) fibers[first + k]->state = State::kReady;
    }
    released = true;
  }
  return released;
}

void poison(std::vector<std::max_align_t>& memory) {
  std::memset(memory.data(), 0xff, memory.size() * sizeof(std::max_align_t));
}

void run_block() {
  for (auto& part : shared_parts) poison(part.second);
  poison(dynamic_part);
  for (unsigned t = 0; t < threads; ++t) fibers[t]->state = State::kReady;
  turns.assign(threads, 0);
  while (true) {
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = order == Order::kForward ? i : threads - 1 - i;
      if (fibers[t]->state == State::kReady) resume(t);
    }
    if (count(State::kDone) == threads) return;
    bool released = false;
    for (unsigned first = 0; first < threads; first += kWarpSize) released |= release_warp(first);
    if (released) continue;
    if (count(State::kAtBlockBarrier) != threads) fail("a barrier that some threads never reach");
    for (unsigned t = 0; t < threads; ++t) fibers[t]->state = State::kReady;
  }
}

}  // namespace

void* shared(const void* key, size_t bytes) {
  auto& part = shared_parts[key];
  if (part.empty()) {
    part.resize((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    poison(part);
  }
  return part.data();
}

void* dynamic_shared() {
  return dynamic_part.data();
}

void sync_block() {
  wait(State::kAtBlockBarrier, 0);
}

void sync_warp(unsigned mask) {
  wait(State::kAtWarpBarrier, mask);
}

unsigned exchange(unsigned mask, unsigned value, int source) {
  const unsigned warp = current / kWarpSize, lane = current % kWarpSize, turn = turns[current]++ % 2;
  warps[warp].slots[turn][lane] = value;
  sync_warp(mask);
  if (!(mask >> source & 1) || warp * kWarpSize + source >= threads) fail("a shuffle from a lane that takes no part");
  return warps[warp].slots[turn][source];
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  threads = blockDim.x * blockDim.y * blockDim.z;
  const uint64_t blocks = static_cast<uint64_t>(gridDim.x) * gridDim.y * gridDim.z;
  if (threads == 0 || threads > kMostThreads || blocks == 0) return cudaErrorInvalidConfiguration;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  warps.resize((threads + kWarpSize - 1) / kWarpSize);
  dynamic_part.resize((config.dynamicSmemBytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
  shared_parts.clear();
  body = &thread;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = order == Order::kForward ? i : blocks - 1 - i;
    blockIdx = dim3(static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                    static_cast<unsigned>(b / gridDim.x / gridDim.y));
    run_block();
  }
  return cudaSuccess;
}

}  // namespace cuda_shim

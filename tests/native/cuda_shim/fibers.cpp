// The scheduler of the shim: a fiber for every thread of a cluster.
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "guarded.h"

namespace cuda_shim {
namespace {

constexpr size_t kStackBytes = 64 << 10, kMostDynamicBytes = 227 << 10;
constexpr unsigned kWarpSize = 32, kMostThreads = 1024, kMostBlocks = 8;  // of a block, of a cluster

enum class State { kReady, kAtClusterBarrier, kAtBlockBarrier, kAtWarpBarrier, kDone };

// makecontext gives a fiber its stack, once; switches are made by _setjmp, which unlike swapcontext asks nothing of the
// kernel. A fiber never ends: it waits for the next cluster.
struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf here;
  State state = State::kDone;
  unsigned mask = 0;                 // lanes that its warp barrier waits for
  unsigned turns = 0;                // exchanges that it has made
  unsigned arrivals = 0, waits = 0;  // at the cluster's barrier
  bool begun = false;
  ucontext_t context;
};

struct Warp {
  unsigned slots[2][kWarpSize];  // in turns, so that a lane which is ahead overwrites nothing
};

using Memory = std::vector<std::max_align_t>;

struct Block {
  dim3 index;
  std::vector<Warp> warps;
  std::map<const void*, Memory> shared_parts;
  std::unique_ptr<Guarded<unsigned char>> dynamic_part;
};

std::vector<std::unique_ptr<Fiber>> fibers;  // of a cluster, block by block
std::vector<Block> blocks;                   // of a cluster
const std::function<void()>* body;
unsigned current, threads;  // the running fiber; threads of a block
jmp_buf scheduler;

unsigned fiber_count() {
  return threads * static_cast<unsigned>(blocks.size());
}

Block& current_block() {
  return blocks[current / threads];
}

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "cuda_shim: block %u, thread %u: %s\n", blockIdx.x, current % threads, message);
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

void resume(unsigned fiber_number) {
  current = fiber_number;
  const unsigned thread = fiber_number % threads;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y));
  blockIdx = current_block().index;
  Fiber& fiber = *fibers[fiber_number];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  setcontext(&fiber.context);
}

unsigned count(State state, unsigned first, unsigned size) {
  unsigned count = 0;
  for (unsigned t = first; t < first + size; ++t) count += fibers[t]->state == state;
  return count;
}

void release(unsigned first, unsigned size) {
  for (unsigned t = first; t < first + size; ++t) fibers[t]->state = State::kReady;
}

bool release_warp(unsigned first, unsigned lanes) {
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

bool release_block(unsigned first) {
  bool released = false;
  for (unsigned t = 0; t < threads; t += kWarpSize)
    released |= release_warp(first + t, std::min(kWarpSize, threads - t));
  if (!released && count(State::kAtBlockBarrier, first, threads) == threads) {
    release(first, threads);
    released = true;
  }
  return released;
}

// Those for which all threads of the cluster have arrived as often as they have waited.
bool release_cluster() {
  unsigned arrivals = ~0u;
  for (unsigned t = 0; t < fiber_count(); ++t) arrivals = std::min(arrivals, fibers[t]->arrivals);
  bool released = false;
  for (unsigned t = 0; t < fiber_count(); ++t) {
    if (fibers[t]->state != State::kAtClusterBarrier || fibers[t]->waits > arrivals) continue;
    fibers[t]->state = State::kReady;
    released = true;
  }
  return released;
}

void poison(Block& block) {
  for (auto& [key, part] : block.shared_parts) std::memset(part.data(), 0xff, part.size() * sizeof(std::max_align_t));
  std::memset(block.dynamic_part->data(), 0xff, block.dynamic_part->size());
}

// As far as it gets without the others: what it reads of theirs, where no barrier of the cluster stands between, is
// then not there yet, or no longer.
void run_block(unsigned first) {
  do {
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = first + (order == Order::kForward ? i : threads - 1 - i);
      if (fibers[t]->state != State::kReady) continue;
      resume(t);
      if (fibers[t]->state == State::kDone && fibers[t]->arrivals != fibers[t]->waits) {
        fail("it arrived at a barrier of its cluster and did not wait");
      }
    }
  } while (release_block(first));
}

void run_cluster() {
  for (Block& block : blocks) poison(block);
  for (unsigned t = 0; t < fiber_count(); ++t) {
    Fiber& fiber = *fibers[t];
    fiber.state = State::kReady;
    fiber.turns = fiber.arrivals = fiber.waits = 0;
  }
  do {
    for (unsigned i = 0; i < blocks.size(); ++i) {
      const unsigned b = order == Order::kForward ? i : static_cast<unsigned>(blocks.size()) - 1 - i;
      run_block(b * threads);
      if (blocks.size() > 1 && count(State::kDone, b * threads, threads) == threads) poison(blocks[b]);
    }
  } while (release_cluster());
  if (count(State::kDone, 0, fiber_count()) != fiber_count()) fail("a barrier that some threads never reach");
  for (const Block& block : blocks) {
    if (!block.dynamic_part->intact()) fail("a write beside dynamic shared memory");
  }
}

}  // namespace

void* shared(const void* key, size_t bytes) {
  Memory& part = current_block().shared_parts[key];
  if (part.empty()) {
    part.resize((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    std::memset(part.data(), 0xff, part.size() * sizeof(std::max_align_t));
  }
  return part.data();
}

void* dynamic_shared() {
  return current_block().dynamic_part->data();
}

unsigned cluster_rank() {
  return current / threads;
}

unsigned cluster_blocks() {
  return static_cast<unsigned>(blocks.size());
}

void arrive_cluster() {
  Fiber& fiber = *fibers[current];
  if (fiber.arrivals != fiber.waits) fail("it arrived twice at a barrier of its cluster");
  ++fiber.arrivals;
}

void wait_cluster() {
  Fiber& fiber = *fibers[current];
  if (fiber.arrivals != ++fiber.waits) fail("it waits at a barrier of its cluster where it has not arrived");
  wait(State::kAtClusterBarrier, 0);
}

void* shared_of(const void* own, unsigned rank) {
  if (rank >= blocks.size()) fail("shared memory of a block that the cluster has not");
  const auto* address = static_cast<const unsigned char*>(own);
  const auto offset_in = [&](const void* begin, size_t bytes) {
    const ptrdiff_t offset = address - static_cast<const unsigned char*>(begin);
    return offset >= 0 && static_cast<size_t>(offset) < bytes ? offset : -1;
  };
  Block& block = current_block();
  ptrdiff_t offset = offset_in(block.dynamic_part->data(), block.dynamic_part->size());
  if (offset >= 0) return blocks[rank].dynamic_part->data() + offset;
  for (auto& [key, part] : block.shared_parts) {
    offset = offset_in(part.data(), part.size() * sizeof(std::max_align_t));
    if (offset < 0) continue;
    const auto found = blocks[rank].shared_parts.find(key);
    if (found == blocks[rank].shared_parts.end()) fail("shared memory that the other block has not begun to use");
    return reinterpret_cast<unsigned char*>(found->second.data()) + offset;
  }
  fail("no address in shared memory");
}

void sync_block() {
  wait(State::kAtBlockBarrier, 0);
}

void sync_warp(unsigned mask) {
  wait(State::kAtWarpBarrier, mask);
}

unsigned exchange(unsigned mask, unsigned value, int source) {
  const unsigned thread = current % threads, warp = thread / kWarpSize, lane = thread % kWarpSize;
  const unsigned turn = fibers[current]->turns++ % 2;
  current_block().warps[warp].slots[turn][lane] = value;
  sync_warp(mask);
  if (!(mask >> source & 1) || warp * kWarpSize + source >= threads) fail("a shuffle from a lane that takes no part");
  return current_block().warps[warp].slots[turn][source];
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  threads = blockDim.x * blockDim.y * blockDim.z;
  const uint64_t grid = static_cast<uint64_t>(gridDim.x) * gridDim.y * gridDim.z;
  unsigned cluster = 1;  // along x, the only way that clusters lie here
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config.attrs[i].val.clusterDim.x;
  }
  if (threads == 0 || threads > kMostThreads || grid == 0 || config.dynamicSmemBytes > kMostDynamicBytes ||
      cluster == 0 || cluster > kMostBlocks || gridDim.x % cluster != 0) {
    return cudaErrorInvalidConfiguration;
  }
  ++launches;
  blocks.clear();
  blocks.resize(cluster);
  for (Block& block : blocks) {
    block.warps.resize((threads + kWarpSize - 1) / kWarpSize);
    block.dynamic_part = std::make_unique<Guarded<unsigned char>>(config.dynamicSmemBytes);
  }
  while (fibers.size() < fiber_count()) fibers.push_back(std::make_unique<Fiber>());
  body = &thread;
  for (uint64_t i = 0; i < grid / cluster; ++i) {
    const uint64_t first = (order == Order::kForward ? i : grid / cluster - 1 - i) * cluster;
    for (unsigned k = 0; k < cluster; ++k) {
      const uint64_t b = first + k;
      blocks[k].index = dim3(static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                             static_cast<unsigned>(b / gridDim.x / gridDim.y));
    }
    run_cluster();
  }
  return cudaSuccess;
}

}  // namespace cuda_shim

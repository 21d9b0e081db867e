// PyTorch's own caching allocator, controlled by lines of text: `a ID BYTES`, `f ID`, `e` (empty the cache).
// One line for each: allocated, reserved, address (hexadecimal, 0: none), 1 if out of memory, retries, segments.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/PeerToPeerAccess.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <unordered_map>

int main() {
  c10::cuda::detail::init_p2p_access_cache(1);
  c10::cuda::CUDACachingAllocator::init(1);
  auto* allocator = c10::cuda::CUDACachingAllocator::get();
  std::unordered_map<long, void*> live;
  std::string move;
  long id;
  unsigned long long nbytes;
  while (std::cin >> move) {
    void* address = nullptr;
    int out_of_memory = 0;
    if (move == "a") {
      std::cin >> id >> nbytes;
      try {
        live[id] = address = allocator->raw_alloc(nbytes);
      } catch (const c10::OutOfMemoryError&) {
        out_of_memory = 1;
        live.erase(id);
      }
    } else if (move == "f") {
      std::cin >> id;
      auto found = live.find(id);
      if (found != live.end()) {
        allocator->raw_delete(found->second);
        live.erase(found);
      }
    } else {
      allocator->emptyCache({0, 0});
    }
    auto stats = allocator->getDeviceStats(0);
    std::printf("%lld %lld %llx %d %lld %lld\n", (long long)stats.allocated_bytes[0].current,
                (long long)stats.reserved_bytes[0].current, (unsigned long long)address, out_of_memory,
                (long long)stats.num_alloc_retries, (long long)stats.segment[0].current);
  }
}

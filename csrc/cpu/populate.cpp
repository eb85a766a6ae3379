#include "cpu/populate.h"

#include <algorithm>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <torch/csrc/stable/c/shim.h>
#include <unistd.h>

// Headers older than Linux 5.14 lack it; older systems refuse it.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#endif

namespace oekd {
namespace {

// The C library gives an allocation of more bytes a mapping of its own, and unmaps it when it is freed.
[[maybe_unused]] constexpr size_t OWN_MAPPING = size_t{32} << 20;
// Bytes of one call.
[[maybe_unused]] constexpr uintptr_t CHUNK = uintptr_t{2} << 20;

// Addresses of whole pages.
struct Pages {
  uintptr_t begin, end;
};

}  // namespace

void populate_new_memory([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  if (bytes <= OWN_MAPPING) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), first = reinterpret_cast<uintptr_t>(begin);
  Pages pages{first / page * page, (first + bytes + page - 1) / page * page};
  const auto chunks = static_cast<int64_t>((pages.end - pages.begin + CHUNK - 1) / CHUNK);
  torch_parallel_for(0, chunks, 1,
                     [](int64_t i, int64_t end, void* data) {
                       const auto& all = *static_cast<const Pages*>(data);
                       for (; i < end; ++i) {
                         const uintptr_t start = all.begin + static_cast<uintptr_t>(i) * CHUNK;
                         const size_t size = std::min(CHUNK, all.end - start);
                         madvise(reinterpret_cast<void*>(start), size, MADV_POPULATE_WRITE);
                       }
                     },
                     &pages);
#endif
}

}  // namespace oekd

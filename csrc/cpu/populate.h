// Pages of new memory, mapped before a kernel writes to them.
#pragma once

#include <cstddef>

namespace oekd {

// Asks Linux to map the pages of [begin, begin + bytes), in parallel on torch's threads, where the C library has most
// likely taken them from the system just now. Mapping many pages in one call takes about 60 % of the time of one page
// fault a page. Does nothing for less memory and on other systems, and ignores failures: the pages are then mapped when
// they are written.
void populate_new_memory(void* begin, size_t bytes);

}  // namespace oekd

// whatever the processor family guarantees (SSE2, NEON); the compiler flags are in setup.py.
#define OEKD_ISA baseline
#define OEKD_LANES 4
#include "cpu/direct_conv/direct_conv_kernel.h"

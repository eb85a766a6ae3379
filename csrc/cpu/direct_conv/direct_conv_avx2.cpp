// AVX2, FMA, F16C; the compiler flags are in setup.py.
#define OEKD_ISA avx2
#define OEKD_LANES 8
#include "cpu/direct_conv/direct_conv_kernel.h"

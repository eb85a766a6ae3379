// AVX-512 F, BW, DQ, VL; the compiler flags are in setup.py.
#define OEKD_ISA avx512
#define OEKD_LANES 16
#include "cpu/direct_conv/direct_conv_kernel.h"

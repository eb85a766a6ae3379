// AVX-512 VL, for its 32 registers: rows of 8 and 16 pixels fill no wider vectors. The compiler flags are in setup.py.
#define OEKD_ISA avx512
#define OEKD_LANES 8
#include "direct_conv_kernel.h"

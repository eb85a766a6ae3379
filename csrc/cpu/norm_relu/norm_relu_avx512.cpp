// AVX-512 F, BW, DQ, VL; the compiler flags are in setup.py.
#define OEKD_ISA avx512
#define OEKD_LANES 16
#include "cpu/norm_relu/norm_relu_kernel.h"

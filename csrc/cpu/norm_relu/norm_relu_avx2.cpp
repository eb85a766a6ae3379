// AVX2, FMA, F16C; the compiler flags are in setup.py.
#define OEKD_ISA avx2
#define OEKD_LANES 8
#include "cpu/norm_relu/norm_relu_kernel.h"

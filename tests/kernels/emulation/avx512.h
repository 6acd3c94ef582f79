// AVX512 with VNNI, for a CPU with AVX2.
#pragma once

#include "avx512_base.h"
#include "vnni.h"

#define __AVX512VNNI__ 1

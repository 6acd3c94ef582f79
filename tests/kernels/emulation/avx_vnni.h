// VNNI in 256 bits, for a CPU with AVX2.
#pragma once

#include "vnni.h"

#define __AVXVNNI__ 1

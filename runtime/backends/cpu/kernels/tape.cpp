// A step's kernels one after another in one call from Python.
//
// Between two kernels Python takes as long as a small kernel itself; a tape takes nothing, and leaves the interpreter to
// other threads for the whole step.
#include "kernel.h"

namespace {

struct Entry {
    int64_t (*kernel)(const void* call);
    const void* call;
};

}  // namespace

// Stops at the first kernel whose inputs are wrong and returns its place, or -1.
extern "C" int64_t padless_run_tape(const Entry* entries, int64_t num_entries) {
    for (int64_t i = 0; i < num_entries; ++i)
        if (entries[i].kernel(entries[i].call)) return i;
    return -1;
}

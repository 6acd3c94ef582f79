// Regions of random sizes, opened by several threads at once, some within others' tasks: says how many tasks were not run
// exactly once.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "parallel.h"

namespace {

thread_local int num_threads = 1;

// How many of the tasks of `num_regions` regions, one after another, were not run once.
int64_t count_wrong(int64_t num_regions, unsigned seed, bool is_nested) {
    std::mt19937 random(seed);
    int64_t wrong = 0;
    for (int64_t region = 0; region < num_regions; ++region) {
        if (region % 500 == 0) num_threads = 1 + int(random() % 4);
        const int64_t num_tasks = random() % 20;
        std::vector<int> runs(num_tasks, 0);  // not atomic: the caller sees what others have written
        padless::parallel_for(num_tasks, true, [&](int64_t task) {
            std::vector<int> parts(6, 0);
            padless::parallel_rows(6, is_nested, [&](int64_t first, int64_t last) {
                for (int64_t part = first; part < last; ++part) ++parts[part];
            });
            for (const int part : parts) runs[task] += part;
        });
        for (const int count : runs) wrong += count != 6;
    }
    return wrong;
}

}  // namespace

extern "C" int omp_get_max_threads() { return num_threads; }

int main(int, char** arguments) {
    const int64_t num_regions = std::atoll(arguments[1]);
    std::atomic<int64_t> wrong{0};
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 3; ++caller)
        callers.emplace_back([&, caller] { wrong += count_wrong(num_regions, caller, caller == 2); });
    for (std::thread& caller : callers) caller.join();
    std::printf("%lld\n", static_cast<long long>(wrong));
}

#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

extern "C" int omp_get_max_threads();  // of torch's OpenMP, where the number for the calling thread is kept

namespace padless {

namespace {

// Turns before a thread that waits goes to sleep, some tens of microseconds: longer than most of what stands between two
// regions, and too short to be in the way of who wants the core. Tests have fewer.
#ifndef PADLESS_SPIN_TURNS
#define PADLESS_SPIN_TURNS 2000
#endif
constexpr int SPIN_TURNS = PADLESS_SPIN_TURNS;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

thread_local bool is_in_task = false;

// The helpers of one thread, which alone opens regions. They end with it.
class Team {
public:
    const int64_t num_wanted;

    // Of fewer helpers where the system has no more threads: they do the same work.
    explicit Team(int64_t num_wanted) : num_wanted(num_wanted) {
        helpers.reserve(num_wanted);
        try {
            while (int64_t(helpers.size()) < num_wanted) helpers.emplace_back([this] { help(); });
        } catch (const std::system_error&) {
        }
    }

    ~Team() {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            is_over = true;
        }
        wake.notify_all();
        for (std::thread& helper : helpers) helper.join();
    }

    void run_region(int64_t count, RunTask run_task, const void* task_body) {
        // Nobody can take a task while these change: the last region is closed.
        run.store(run_task, std::memory_order_release);
        body.store(task_body, std::memory_order_release);
        num_tasks.store(count, std::memory_order_release);
        num_done.store(0, std::memory_order_relaxed);
        region += REGION;
        claims.store(region);
        wake_helpers();
        is_in_task = true;
        for (int64_t task; (task = int64_t(claims.fetch_add(1) & TASK)) < count;) {
            run_task(task_body, task);
            num_done.fetch_add(1, std::memory_order_acq_rel);
        }
        is_in_task = false;
        wait_for_all(count);
        claims.store(region | TASK);
    }

private:
    static constexpr uint64_t REGION = uint64_t(1) << 32, TASK = REGION - 1;

    // The number of the region, and in the lower half the next task that nobody has taken; all ones: it is closed.
    alignas(64) std::atomic<uint64_t> claims{TASK};
    alignas(64) std::atomic<int64_t> num_done{0};
    alignas(64) std::atomic<int64_t> num_tasks{0};
    std::atomic<RunTask> run{nullptr};
    std::atomic<const void*> body{nullptr};
    std::atomic<int64_t> num_asleep{0};
    std::atomic<bool> is_waiting{false}, is_over{false};
    std::mutex mutex;
    std::condition_variable wake, finished;
    uint64_t region = 0;
    std::vector<std::thread> helpers;

    bool has_task(uint64_t claim) const { return int64_t(claim & TASK) < num_tasks.load(std::memory_order_acquire); }

    void help() {
        is_in_task = true;
        int turns = 0;
        while (!is_over.load(std::memory_order_relaxed)) {
            uint64_t claim = claims.load();
            if (has_task(claim)) {
                take(claim);
                turns = 0;
            } else if (++turns < SPIN_TURNS) {
                pause();
            } else {
                sleep();
                turns = 0;
            }
        }
    }

    // If the claim still stands, what was read of the region is the region's, and stays until the task is done.
    void take(uint64_t claim) {
        const RunTask run_task = run.load(std::memory_order_acquire);
        const void* task_body = body.load(std::memory_order_acquire);
        const int64_t count = num_tasks.load(std::memory_order_acquire);
        if (!claims.compare_exchange_strong(claim, claim + 1)) return;
        run_task(task_body, int64_t(claim & TASK));
        if (num_done.fetch_add(1) + 1 == count && is_waiting.load()) {
            { const std::lock_guard<std::mutex> lock(mutex); }
            finished.notify_one();
        }
    }

    // Who falls asleep says so before it looks for tasks a last time, and who opens a region opens it before it looks for
    // sleepers: one of them sees the other.
    void sleep() {
        std::unique_lock<std::mutex> lock(mutex);
        ++num_asleep;
        if (is_over || has_task(claims.load()))
            --num_asleep;
        else
            wake.wait(lock);
    }

    void wake_helpers() {
        if (num_asleep.load() == 0) return;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            num_asleep = 0;
        }
        wake.notify_all();
    }

    void wait_for_all(int64_t count) {
        for (int turns = 0; num_done.load(std::memory_order_acquire) < count; ++turns) {
            if (turns < SPIN_TURNS) {
                pause();
                continue;
            }
            std::unique_lock<std::mutex> lock(mutex);
            is_waiting = true;
            finished.wait(lock, [&] { return num_done.load() == count; });
            is_waiting = false;
        }
    }
};

// Of the calling thread, as large as it has to be now.
Team& find_team(int64_t num_helpers) {
    static thread_local std::unique_ptr<Team> team;
    if (!team || team->num_wanted != num_helpers) {
        team.reset();
        team = std::make_unique<Team>(num_helpers);
    }
    return *team;
}

}  // namespace

int64_t count_threads() { return is_in_task ? 1 : std::max(1, omp_get_max_threads()); }

void run_tasks(int64_t num_tasks, RunTask run, const void* body) {
    const int64_t num_threads = count_threads();
    if (num_threads == 1 || num_tasks < 2)
        for (int64_t task = 0; task < num_tasks; ++task) run(body, task);
    else
        find_team(num_threads - 1).run_region(num_tasks, run, body);
}

}  // namespace padless

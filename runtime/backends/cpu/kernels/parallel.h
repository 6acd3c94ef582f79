// Tasks of a kernel, shared by a team of threads that nobody waits for.
//
// A task belongs to who takes it, and a region ends when all tasks are done. Where another process has a thread's core,
// the others do its work meanwhile; OpenMP's regions end only when each thread has arrived, a slice of the scheduler
// later (docs/decisions/0031). What is computed is the same whoever takes a task.
#pragma once

#include <algorithm>
#include <cstdint>

namespace padless {

// That compute for the calling thread, itself among them: as many as torch uses.
int64_t count_threads();

using RunTask = void (*)(const void* body, int64_t task);
void run_tasks(int64_t num_tasks, RunTask run, const void* body);

// body(task) for each task of [0, num_tasks), fewer than 2 ** 32. One after the other within a task that is shared itself,
// and where there is not so much to do that waking others pays.
template <class Body>
void parallel_for(int64_t num_tasks, bool has_many, const Body& body) {
    if (has_many)
        run_tasks(num_tasks, [](const void* body, int64_t task) { (*static_cast<const Body*>(body))(task); }, &body);
    else
        for (int64_t task = 0; task < num_tasks; ++task) body(task);
}

// body(first, last) for pieces of [0, num_rows), a few for each thread.
template <class Body>
void parallel_rows(int64_t num_rows, bool has_many, const Body& body) {
    constexpr int64_t PIECES_EACH = 4;
    const int64_t wanted = has_many ? PIECES_EACH * count_threads() : 1, each = (num_rows + wanted - 1) / wanted;
    if (num_rows <= 0) return;
    parallel_for((num_rows + each - 1) / each, has_many,
                 [&](int64_t piece) { body(piece * each, std::min(num_rows, (piece + 1) * each)); });
}

}  // namespace padless

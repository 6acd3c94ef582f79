// `padless::round_channels`: a channel at a time, rounded to int8 by the scale that errs least.
#include <algorithm>
#include <cfloat>

#include "rows.h"

using namespace padless;

namespace {

constexpr int MEMBERS = 4;  // weights that meet in one 16-bit sum
constexpr float MAX_INT8 = 127.0f, GROUP_BOUND = 128.0f;

// A channel in planes [MEMBERS][num_groups]: the members of a group below each other.
struct Planes {
    float* data;
    int64_t num_groups;

    float* member(int m) const { return data + m * num_groups; }
};

// Column 8b + 4x + 2y + z is member 2x + z of group 2b + y; columns behind the end are 0.
inline void split_groups(const float* row, int64_t depth, const Planes& planes) {
    for (int64_t column = 0; column < planes.num_groups * MEMBERS; ++column) {
        const int64_t x = column >> 2 & 1, y = column >> 1 & 1, z = column & 1;
        planes.member(2 * x + z)[column / 8 * 2 + y] = column < depth ? row[column] : 0.0f;
    }
}

// The nearest whole numbers >= 0 to `wanted` whose sum is at most GROUP_BOUND, as `project` in weights.py finds them.
inline void project(const float* wanted, float* values) {
    float sorted[MEMBERS];
    std::copy(wanted, wanted + MEMBERS, sorted);
    std::sort(sorted, sorted + MEMBERS, [](float a, float b) { return a > b; });
    float sum = 0.0f, threshold = 0.0f, total = 0.0f;
    for (int m = 0; m < MEMBERS; ++m) {
        sum += sorted[m];
        threshold = std::max(threshold, (sum - GROUP_BOUND) / float(m + 1));
    }
    for (int m = 0; m < MEMBERS; ++m) total += values[m] = __builtin_floorf(std::max(wanted[m] - threshold, 0.0f));
    for (int turn = 0; turn < MEMBERS && total < GROUP_BOUND; ++turn) {
        int most = 0;
        for (int m = 1; m < MEMBERS; ++m)
            if (wanted[m] - values[m] > wanted[most] - values[most]) most = m;
        if (wanted[most] - values[most] <= 0.5f) break;
        values[most] += 1.0f;
        total += 1.0f;
    }
}

// Moves the group to the nearest point within the bound.
inline void bound_group(const Planes& scaled, const Planes& values, int64_t group) {
    float above[MEMBERS], below[MEMBERS], positive[MEMBERS], negative[MEMBERS];
    for (int m = 0; m < MEMBERS; ++m) {
        above[m] = std::max(scaled.member(m)[group], 0.0f);
        below[m] = std::max(-scaled.member(m)[group], 0.0f);
    }
    project(above, positive);
    project(below, negative);
    for (int m = 0; m < MEMBERS; ++m) values.member(m)[group] = positive[m] - negative[m];
}

// Twice the larger of what a group's positive and its negative members sum to.
inline float fullness(const Planes& values, int64_t group) {
    float sum = 0.0f, absolute = 0.0f;
    for (int m = 0; m < MEMBERS; ++m) {
        sum += values.member(m)[group];
        absolute += __builtin_fabsf(values.member(m)[group]);
    }
    return absolute + __builtin_fabsf(sum);
}

inline float find_fullest(const Planes& values) {
    float fullest = 0.0f;
#pragma omp simd reduction(max : fullest)
    for (int64_t group = 0; group < values.num_groups; ++group) fullest = std::max(fullest, fullness(values, group));
    return fullest;
}

// Rounds a channel by one scale. Returns the sum of squared errors, in units of the scale.
inline float round_channel(const Planes& weights, float scale, bool overflow_free, const Planes& scaled, const Planes& values) {
    const int64_t count = weights.num_groups * MEMBERS;
    for (int64_t i = 0; i < count; ++i) {
        scaled.data[i] = weights.data[i] / scale;
        values.data[i] = std::min(std::max(__builtin_rintf(scaled.data[i]), -MAX_INT8), MAX_INT8);
    }
    if (overflow_free && find_fullest(values) > 2.0f * GROUP_BOUND)
        for (int64_t group = 0; group < weights.num_groups; ++group)
            if (fullness(values, group) > 2.0f * GROUP_BOUND) bound_group(scaled, values, group);
    Vec errors{};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Vec error = load(scaled.data + i) - load(values.data + i);
        errors += error * error;
    }
    float rest = 0.0f;
    for (; i < count; ++i) rest += (scaled.data[i] - values.data[i]) * (scaled.data[i] - values.data[i]);
    return sum(errors) + rest;
}

}  // namespace

using namespace padless;

PADLESS_KERNEL(round_channels, RoundChannels) {
    const int64_t num_rows = call.weight.sizes[0], depth = call.weight.sizes[1];
    const int64_t num_groups = (depth + 7) / 8 * 2, count = num_groups * MEMBERS;
    const float *weight = data<float>(call.weight), *limits = data<float>(call.limits);
    float* scales = data<float>(call.scale);
    parallel_rows(num_rows, true, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* space = scratch(memory, 3 * count);
        const Planes weights{space, num_groups}, scaled{space + count, num_groups}, rounded{space + 2 * count, num_groups};
        for (int64_t row = first; row < last; ++row) {
            split_groups(weight + row * depth, depth, weights);
            int8_t* values = data<int8_t>(call.out) + row * count;
            float largest = 0.0f, best = __builtin_inff();
            for (int64_t i = 0; i < count; ++i) largest = std::max(largest, __builtin_fabsf(weights.data[i]));
            scales[row] = __builtin_nanf("");  // no error is smaller than infinite where a weight is not finite
            std::fill(values, values + count, int8_t(0));
            for (int64_t limit = 0; limit < call.limits.sizes[0]; ++limit) {
                const float scale = std::max(largest > 0 ? largest / limits[limit] : 1.0f, FLT_MIN);
                const float error = round_channel(weights, scale, call.overflow_free, scaled, rounded) * scale * scale;
                if (!(error < best)) continue;
                best = error;
                scales[row] = scale;
                for (int64_t i = 0; i < count; ++i) values[i] = int8_t(rounded.data[i]);
            }
        }
    });
    return 0;
}

// A step's kernels one after another in one call from Python, each with its arguments as words of 8 bytes.
//
// Between two kernels Python takes as long as a small kernel itself; a tape takes nothing, and leaves the interpreter to
// other threads for the whole step.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace padless {

// A pointer, a whole number, or a float in the first four bytes.
using Word = int64_t;

template <class T>
T from_word(Word word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

template <class Result, class... Args, size_t... places>
int64_t play(Result (*kernel)(Args...), const Word* words, std::index_sequence<places...>) {
    if constexpr (std::is_void_v<Result>) {
        kernel(from_word<Args>(words[places])...);
        return 0;
    } else {
        return kernel(from_word<Args>(words[places])...);
    }
}

// Calls a kernel with arguments from words. Returns what it returns: 0, or how many of its inputs are wrong.
template <class Result, class... Args>
int64_t play(Result (*kernel)(Args...), const Word* words) {
    return play(kernel, words, std::index_sequence_for<Args...>{});
}

}  // namespace padless

// Behind a kernel's definition: lets it be on a tape.
#define PADLESS_PLAYABLE(name) \
    extern "C" int64_t padless_play_##name(const padless::Word* words) { return padless::play(padless_##name, words); }

// Token role on the CPU, for one instruction set: included after a vector_*.h header, compiled once for each of them.
//
// One token at a time: its channels are converted to float32 in scratch that stays in the first-level cache, stepped,
// projected, added and written. The loops call the scalar functions of common/ and are vectorised by the compiler, so
// that both devices share one definition; only the conversions of half-width types use the vector headers.
#pragma once

#include "ops/cpu/element_rows.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/vector_math.h"
#include "ops/tokens.h"
#include "ops/rows.h"

namespace {

constexpr int64_t kNoiseBlocks = 32;            // Philox blocks generated together
constexpr int64_t kStreamedBytes = 8 * 1024 * 1024;  // results larger than this leave the caches before they are read

// Both the rounds and the quantile run over all blocks at once: loops that the compiler vectorises.
inline void noise_of_token(const NoiseToken& token, float deviation, int64_t channels, float* out) {
  uint32_t words[4][kNoiseBlocks];
  float z[4][kNoiseBlocks];
  for (int64_t first = 0; first < channels; first += 4 * kNoiseBlocks) {
    for (int64_t block = 0; block < kNoiseBlocks; ++block) {
      const PhiloxBlock counter = noise_counter(token, static_cast<uint32_t>(first / 4 + block));
      for (int word = 0; word < 4; ++word) words[word][block] = counter.word[word];
    }
    PhiloxKey key = token.key;
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma omp simd
      for (int64_t block = 0; block < kNoiseBlocks; ++block) {
        philox_round(words[0][block], words[1][block], words[2][block], words[3][block], key);
      }
      key = next_round(key);
    }
    for (int word = 0; word < 4; ++word) {
#pragma omp simd
      for (int64_t block = 0; block < kNoiseBlocks; ++block) {
        z[word][block] = MA_MUL(gaussian_of_word(words[word][block]), deviation);
      }
    }
    float ordered[4 * kNoiseBlocks];
#pragma omp simd
    for (int64_t block = 0; block < kNoiseBlocks; ++block) {
      for (int word = 0; word < 4; ++word) ordered[4 * block + word] = z[word][block];
    }
    const int64_t count = channels - first < 4 * kNoiseBlocks ? channels - first : 4 * kNoiseBlocks;
    __builtin_memcpy(out + first, ordered, static_cast<size_t>(count) * sizeof(float));
  }
}

// max |g| as its bits, whose order is that of the numbers; infinities and NaN come last.
inline int32_t largest_magnitude_bits(const float* values, int64_t count) {
  int32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = bits_as<int32_t>(values[i]) & 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// delta' of one token into `moved`; max |g|, or infinity when the gradient is not finite (delta' = delta then).
inline float step_token(const float* delta, const float* grad, int64_t channels, const AscentStep& step, float* moved) {
  const int32_t largest = largest_magnitude_bits(grad, channels);
  if (largest >= 0x7F800000) {
    if (moved != delta) __builtin_memmove(moved, delta, static_cast<size_t>(channels) * sizeof(float));
    return __builtin_inff();
  }
  const float norm = bits_as<float>(largest);
  if (step.projection == kClamp) {
#pragma omp simd
    for (int64_t i = 0; i < channels; ++i) {
      const float value = MA_ADD(delta[i], MA_MUL(step.step_size, grad[i]));
      moved[i] = projected(value, 0.0f, AscentStep{step.step_size, step.epsilon, kClamp});
    }
    return norm;
  }
#pragma omp simd
  for (int64_t i = 0; i < channels; ++i) moved[i] = stepped(delta[i], grad[i], norm, step);
  const float stepped_norm = bits_as<float>(largest_magnitude_bits(moved, channels));
#pragma omp simd
  for (int64_t i = 0; i < channels; ++i) moved[i] = projected(moved[i], stepped_norm, step);
  return norm;
}

// Sums over the channels of one token; `start` is delta before the step, `factor` that of the gradient in it.
inline void sum_token(const float* start, const float* grad, const float* moved, int64_t channels, float factor,
                      float* sums) {
  float l1 = 0.0f, square = 0.0f, step_square = 0.0f, start_square = 0.0f;
#pragma omp simd reduction(+ : l1, square, start_square)
  for (int64_t i = 0; i < channels; ++i) {
    l1 += __builtin_fabsf(moved[i]);
    square += moved[i] * moved[i];
    start_square += start[i] * start[i];
  }
  if (grad != nullptr) {
#pragma omp simd reduction(+ : step_square)
    for (int64_t i = 0; i < channels; ++i) step_square += (factor * grad[i]) * (factor * grad[i]);
  }
  sums[0] = l1, sums[2] = square, sums[3] = step_square, sums[4] = start_square;
}

// A finished row goes to its tensor: past the caches when the tensor is large, which avoids reading what is
// overwritten.
inline void write_out(const void* row, int64_t bytes, int64_t tensor_bytes, void* to) {
  constexpr int64_t step = Vector::width * static_cast<int64_t>(sizeof(float));
  int64_t i = 0;
  if (tensor_bytes > kStreamedBytes && reinterpret_cast<uintptr_t>(to) % step == 0) {
    const char* from = static_cast<const char*>(row);
    for (; i + step <= bytes; i += step) {
      stream(reinterpret_cast<float*>(static_cast<char*>(to) + i), load(reinterpret_cast<const float*>(from + i)));
    }
  }
  if (i < bytes) __builtin_memcpy(static_cast<char*>(to) + i, static_cast<const char*>(row) + i, static_cast<size_t>(bytes - i));
}

// Writes x and returns the value as stored.
template <typename Out>
Vector written(Out* to, Vector x) {
  store(to, x);
  return load(to);
}

// `sum` = x + delta' rounded to the output type; returns sum |cast(x + delta') - cast(x)|.
template <typename Element, typename Out>
float add_row(const Element* x, const float* moved, int64_t channels, Out* sum) {
  constexpr int64_t step = Vector::width;
  Out rounded[step];
  Vector less = broadcast(0.0f);  // minus the sums
  int64_t i = 0;
  for (; i + step <= channels; i += step) {
    const Vector exact = load(x + i);
    less = less + negated_absolute(written(sum + i, exact + load(moved + i)) - written(rounded, exact));
  }
  if (const int64_t rest = channels - i; rest > 0) {
    const Vector exact = load_some(x + i, rest, 0.0f);
    store_some(sum + i, exact + load_some(moved + i, rest, 0.0f), rest);
    less = less + negated_absolute(load_some(sum + i, rest, 0.0f) - written(rounded, exact));
  }
  return -sum_of(less);
}

// `add_row` of a token, written to x_adv. A row of scratch.
template <typename Element, typename Out>
float add_token(const TokenTask& task, int64_t token, const float* moved, float* scratch) {
  const int64_t channels = task.channels, bytes = channels * static_cast<int64_t>(sizeof(Out));
  Out* sum = reinterpret_cast<Out*>(scratch);
  const float total = add_row(static_cast<const Element*>(task.x) + token * channels, moved, channels, sum);
  write_out(sum, bytes, bytes * task.tokens, static_cast<Out*>(task.x_adv) + token * channels);
  return total;
}

inline float add_token(const TokenTask& task, int64_t token, const float* moved, float* scratch) {
  return by_element(task.x_element, [&](auto x) {
    return by_element(task.out_element, [&](auto out) {
      return add_token<decltype(x), decltype(out)>(task, token, moved, scratch);
    });
  });
}

inline void perturb_token(const TokenTask& task, int64_t token, float* scratch) {
  const int64_t channels = task.channels, room = token_scratch_floats(channels) / kScratchRows;
  float *moved = scratch, none[kTokenSums];
  float* sums = task.token_sums != nullptr ? task.token_sums + token * kTokenSums : none;
  __builtin_memset(sums, 0, kTokenSums * sizeof(float));
  const bool inside = task.mask == nullptr || task.mask[token];
  if (inside) {
    const float* start = scratch + room;
    if (task.delta == nullptr) noise_of_token(noise_token(task, token), task.noise_std, channels, scratch + room);
    else start = as_float(element_at(task.delta, task.delta_element, token * channels), task.delta_element, channels, scratch + room);
    const float* grad = nullptr;
    if (task.grad != nullptr) {
      const void* row = element_at(task.grad, task.grad_element, token * channels);
      grad = as_float(row, task.grad_element, channels, scratch + 2 * room);
    }
    const float norm = grad == nullptr ? 0.0f : step_token(start, grad, channels, task.step, moved);
    const bool finite = norm < __builtin_inff();
    if (grad == nullptr) __builtin_memcpy(moved, start, static_cast<size_t>(channels) * sizeof(float));
    if (task.token_sums != nullptr) {
      const float factor = scaled(task.step.step_size, norm, task.step);
      sum_token(start, finite ? grad : nullptr, moved, channels, factor, sums);
    }
    sums[5] = finite ? 0.0f : 1.0f;
  } else {
    __builtin_memset(moved, 0, static_cast<size_t>(channels) * sizeof(float));
  }
  const int64_t bytes = channels * static_cast<int64_t>(sizeof(float));
  write_out(moved, bytes, bytes * task.tokens, task.delta_out + token * channels);
  if (task.x != nullptr) sums[1] = add_token(task, token, moved, scratch + room);
}

void perturb_tokens(const TokenTask& task, int64_t begin, int64_t end, float* scratch) {
  for (int64_t token = begin; token < end; ++token) perturb_token(task, token, scratch);
  finish_streaming();
}

}  // namespace

// Token role on the GPU: one token of the perturbation by one warp, four channels a lane at a time.
//   measure   is the gradient finite, its greatest magnitude (and that of delta + eta g, for `normalize`)
//   move      delta' written, x + delta' rounded to the output type and written, sums for the statistics
// Noise is generated where delta would be read: a Philox block is four channels. Arithmetic: common/projection.h,
// common/gaussian.h, as on the CPU, bit for bit.
#include "ops/cuda/alum_kernel.cuh"
#include "ops/rows.h"
#include "ops/tokens.h"

namespace {

struct Quad {
  float value[4];
};

template <typename Element>
struct alignas(4 * sizeof(Element)) Four {
  Element element[4];
};

template <typename Element>
MA_DEVICE Quad read_quad_of(const void* base, int64_t offset, int count) {
  const Element* from = static_cast<const Element*>(base) + offset;
  Quad quad{{0.0f, 0.0f, 0.0f, 0.0f}};
  if (count == 4 && reinterpret_cast<uintptr_t>(from) % sizeof(Four<Element>) == 0) {
    const Four<Element> four = *reinterpret_cast<const Four<Element>*>(from);
    for (int i = 0; i < 4; ++i) quad.value[i] = widen(four.element[i]);
    return quad;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) quad.value[i] = widen(from[i]);
  }
  return quad;
}

template <typename Element>
MA_DEVICE void write_quad_of(void* base, int64_t offset, const Quad& quad, int count, Quad* seen) {
  Element* to = static_cast<Element*>(base) + offset;
  Four<Element> four;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    narrow(&four.element[i], quad.value[i]);
    seen->value[i] = widen(four.element[i]);
  }
  if (to == nullptr) return;
  if (count == 4 && reinterpret_cast<uintptr_t>(to) % sizeof(Four<Element>) == 0) {
    *reinterpret_cast<Four<Element>*>(to) = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = four.element[i];
  }
}

MA_DEVICE Quad read_quad(const void* base, int element, int64_t offset, int count) {
  if (element == kFloat32) return read_quad_of<float>(base, offset, count);
  if (element == kBFloat16) return read_quad_of<BFloat16>(base, offset, count);
  return read_quad_of<Float16>(base, offset, count);
}

// `write` false only rounds. Returns the numbers as the output type holds them.
MA_DEVICE Quad write_quad(void* base, int element, int64_t offset, const Quad& quad, int count, bool write) {
  Quad seen;
  if (element == kFloat32) write_quad_of<float>(write ? base : nullptr, write ? offset : 0, quad, count, &seen);
  else if (element == kBFloat16) write_quad_of<BFloat16>(write ? base : nullptr, write ? offset : 0, quad, count, &seen);
  else write_quad_of<Float16>(write ? base : nullptr, write ? offset : 0, quad, count, &seen);
  return seen;
}

// delta before the step: read, or generated.
MA_DEVICE Quad start_quad(const TokenTask& task, int64_t token, int64_t channel, int count) {
  if (task.delta != nullptr) return read_quad(task.delta, task.delta_element, token * task.channels + channel, count);
  const NoiseToken noise = noise_token(task, token);
  const PhiloxBlock words = philox(noise_counter(noise, static_cast<uint32_t>(channel / 4)), noise.key);
  Quad quad;
  for (int i = 0; i < 4; ++i) quad.value[i] = MA_MUL(gaussian_of_word(words.word[i]), task.noise_std);
  return quad;
}

struct TokenNorms {
  float gradient, stepped;
  bool finite;
};

MA_DEVICE TokenNorms measure_token(const TokenTask& task, int64_t token, int lane) {
  float largest = 0.0f, nonfinite = 0.0f;
  for (int64_t channel = 4 * lane; channel < task.channels; channel += 4 * 32) {
    const int count = task.channels - channel < 4 ? static_cast<int>(task.channels - channel) : 4;
    const Quad grad = read_quad(task.grad, task.grad_element, token * task.channels + channel, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // beyond `count` the gradient is 0
      const float size = fabsf(grad.value[i]);
      if (!(size < MA_INFINITY)) nonfinite = 1.0f;
      largest = size > largest ? size : largest;
    }
  }
  TokenNorms norms{warp_greatest(largest), 0.0f, warp_greatest(nonfinite) == 0.0f};
  if (task.step.projection != kNormalize || !norms.finite) return norms;
  float stepped_largest = 0.0f;
  for (int64_t channel = 4 * lane; channel < task.channels; channel += 4 * 32) {
    const int count = task.channels - channel < 4 ? static_cast<int>(task.channels - channel) : 4;
    const Quad grad = read_quad(task.grad, task.grad_element, token * task.channels + channel, count);
    const Quad start = start_quad(task, token, channel, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) continue;  // noise has values there
      const float size = fabsf(stepped(start.value[i], grad.value[i], norms.gradient, task.step));
      stepped_largest = size > stepped_largest ? size : stepped_largest;
    }
  }
  norms.stepped = warp_greatest(stepped_largest);
  return norms;
}

MA_DEVICE void move_token(const TokenTask& task, int64_t token, int lane) {
  const bool inside = task.mask == nullptr || task.mask[token];
  const bool ascends = inside && task.grad != nullptr;
  const TokenNorms norms = ascends ? measure_token(task, token, lane) : TokenNorms{0.0f, 0.0f, true};
  const float factor = scaled(task.step.step_size, norms.gradient, task.step);
  float sums[kTokenSums] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, norms.finite ? 0.0f : 1.0f};
  for (int64_t channel = 4 * lane; channel < task.channels; channel += 4 * 32) {
    const int count = task.channels - channel < 4 ? static_cast<int>(task.channels - channel) : 4;
    const int64_t offset = token * task.channels + channel;
    Quad moved{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (inside) {
      const Quad start = start_quad(task, token, channel, count);
      Quad grad{{0.0f, 0.0f, 0.0f, 0.0f}};
      if (ascends && norms.finite) grad = read_quad(task.grad, task.grad_element, offset, count);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= count) continue;
        moved.value[i] = start.value[i];
        if (ascends && norms.finite) {
          const float value = stepped(start.value[i], grad.value[i], norms.gradient, task.step);
          moved.value[i] = projected(value, norms.stepped, task.step);
        }
        const float step = factor * grad.value[i];
        sums[0] += fabsf(moved.value[i]);
        sums[2] += moved.value[i] * moved.value[i];
        sums[3] += step * step;
        sums[4] += start.value[i] * start.value[i];
      }
    }
    write_quad(task.delta_out, kFloat32, offset, moved, count, true);
    if (task.x == nullptr) continue;
    const Quad x = read_quad(task.x, task.x_element, offset, count);
    Quad sum;
    for (int i = 0; i < 4; ++i) sum.value[i] = MA_ADD(x.value[i], moved.value[i]);
    const Quad seen = write_quad(task.x_adv, task.out_element, offset, sum, count, true);
    const Quad base = write_quad(task.x_adv, task.out_element, offset, x, count, false);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[1] += fabsf(seen.value[i] - base.value[i]);  // 0 beyond `count`
  }
  if (task.token_sums == nullptr) return;
  for (int i = 0; i < kTokenSums - 1; ++i) sums[i] = warp_sum(sums[i]);
  if (lane != 0) return;
  for (int i = 0; i < kTokenSums; ++i) task.token_sums[token * kTokenSums + i] = sums[i];
}

struct TokenRole {
  using Task = TokenTask;
  static constexpr int threads = 128, blocks = 8;  // allows 64 registers a thread
  MA_DEVICE void run(const Task& task, int) {
    constexpr int warps = threads / 32;
    const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
    for (int64_t token = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; token < task.tokens; token += step) {
      move_token(task, token, static_cast<int>(threadIdx.x % 32));
    }
  }
};

}  // namespace

int launch_tokens(const TokenTask& task, void* stream) {
  constexpr int warps = TokenRole::threads / 32;
  const int64_t needed = (task.tokens + warps - 1) / warps;
  if (needed == 0) return cudaSuccess;
  return launch_role<TokenRole>(task, 1, looping_blocks(needed), 1, stream);
}

// Token role, the plain-C contract between the torch glue and the kernels of both devices: tokens of the perturbation.
//     delta' = project(delta + eta g),  x_adv = x + delta'        (common/projection.h, common/gaussian.h)
//
// | field           | shape, type                          | in/out                                                  |
// |-----------------|--------------------------------------|---------------------------------------------------------|
// | x               | [tokens, channels], element or null  | in                                                      |
// | delta           | [tokens, channels], element or null  | in; null = noise from `sample_index` and `position`     |
// | grad            | [tokens, channels], element or null  | in; null = no step                                      |
// | mask            | [tokens] bool or null                | in; false = delta' is 0 there                           |
// | x_adv           | [tokens, channels], element or null  | out                                                     |
// | delta_out       | [tokens, channels] float             | out                                                     |
// | token_sums      | [tokens, kTokenSums] float or null   | out; summed over tokens by the caller, in order         |
#pragma once

#include "common/gaussian.h"
#include "common/projection.h"

// sum |delta'|, sum |cast(x + delta') - cast(x)|, sum delta'^2, sum (eta g)^2, sum delta^2, 1 if g is not finite.
constexpr int kTokenSums = 6;

struct TokenTask {
  const void *x, *delta, *grad;
  const bool* mask;
  void* x_adv;
  float* delta_out;
  float* token_sums;
  const int64_t *sample_index, *position;  // [tokens], read where delta is null
  int64_t tokens, channels;
  uint32_t seed, iteration;
  float noise_std;
  AscentStep step;
  int x_element, delta_element, grad_element, out_element;
};

MA_FUNCTION NoiseToken noise_token(const TokenTask& task, int64_t token) {
  return NoiseToken{{task.seed, task.iteration},
                    static_cast<uint32_t>(task.position[token]),
                    static_cast<uint64_t>(task.sample_index[token])};
}

void run_tokens_cpu(const TokenTask& task);
// Queues the launch on `stream` (a cudaStream_t), waits for nothing and returns its cudaError_t.
int launch_tokens(const TokenTask& task, void* stream);

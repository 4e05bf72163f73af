// One ascent step and its projection, element by element, as in megatron_alum/reference/tokens.py (bit for bit).
#pragma once

#include "common/portability.h"

enum Projection : int { kClamp = 0, kNormalize = 1, kNormalizedGradient = 2 };

struct AscentStep {
  float step_size, epsilon;
  int projection;
};

// The gradient as the step uses it. `gradient_norm` is max |g| over the token's channels.
MA_FUNCTION float scaled_gradient(float gradient, float gradient_norm, int projection) {
  return projection == kNormalizedGradient && gradient_norm > 0.0f ? MA_DIV(gradient, gradient_norm) : gradient;
}

// The factor of the gradient in the step: eta, or eta / max |g|.
MA_FUNCTION float gradient_factor(float gradient_norm, const AscentStep& step) {
  const bool normalized = step.projection == kNormalizedGradient && gradient_norm > 0.0f;
  return normalized ? MA_DIV(step.step_size, gradient_norm) : step.step_size;
}

MA_FUNCTION float stepped(float delta, float gradient, float gradient_norm, const AscentStep& step) {
  return MA_ADD(delta, MA_MUL(step.step_size, scaled_gradient(gradient, gradient_norm, step.projection)));
}

// `stepped_norm` is max |stepped| over the token's channels, read by kNormalize only.
MA_FUNCTION float projected(float value, float stepped_norm, const AscentStep& step) {
  if (step.projection == kNormalize) return MA_DIV(value, MA_ADD(stepped_norm, 1e-6f));
  const float above = value < -step.epsilon ? -step.epsilon : value;
  return above > step.epsilon ? step.epsilon : above;
}

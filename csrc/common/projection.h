// One ascent step and its projection, element by element, as in megatron_alum/reference/tokens.py (bit for bit).
#pragma once

#include "common/portability.h"

enum Projection : int { kClamp = 0, kNormalize = 1, kNormalizedGradient = 2 };

struct AscentStep {
  float step_size, epsilon;
  int projection;
};

// The gradient, or the step size, as the step uses it. `gradient_norm` is max |g| over the token's channels.
MA_FUNCTION float scaled(float value, float gradient_norm, const AscentStep& step) {
  return step.projection == kNormalizedGradient && gradient_norm > 0.0f ? MA_DIV(value, gradient_norm) : value;
}

MA_FUNCTION float stepped(float delta, float gradient, float gradient_norm, const AscentStep& step) {
  return MA_ADD(delta, MA_MUL(step.step_size, scaled(gradient, gradient_norm, step)));
}

// `stepped_norm` is max |stepped| over the token's channels, read by kNormalize only.
MA_FUNCTION float projected(float value, float stepped_norm, const AscentStep& step) {
  if (step.projection == kNormalize) return MA_DIV(value, MA_ADD(stepped_norm, 1e-6f));
  const float above = value < -step.epsilon ? -step.epsilon : value;
  return above > step.epsilon ? step.epsilon : above;
}

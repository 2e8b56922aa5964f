// Operations on the rows of a matrix, forward and backward, on plain arrays. Nothing here knows TensorFlow.
#pragma once

#include <cstdint>

namespace onerank {

// Rows [rows, width], float or bfloat16, cut into chunks: what is summed over rows is summed per chunk first, so that sums
// depend on the number of rows alone.
struct Rows {
  int64_t rows, width;
  int64_t chunk;  // rows of one, the last may have less
  int64_t sums;   // the width of sums: that of whole vectors of any kernels
  bool bfloat16;
  const void* x;
  void* out;
};

// out = gelu(x + bias), the exact one: z times the share of a standard normal variable below z.
struct Gelu : Rows {
  const float* bias;  // [width]
};

// out = (x - mean) / sqrt(variance + epsilon) * gamma + beta, a row's own mean and variance.
struct Norm : Rows {
  const float *gamma, *beta;  // [width]
  float epsilon;
};

struct RowsGradient {
  const void* grad_out;
  void* grad_x;        // may be grad_out
  float* grad_first;   // [chunks, sums]: of bias, or of gamma
  float* grad_second;  // [chunks, sums]: of beta
};

}  // namespace onerank

// Structured attention of a list of tokens, forward and backward, on plain arrays. Nothing here knows TensorFlow.
//
// The list is cut into groups of equal size, the whole list being one group in the simplest case. A token reads
//   - the context: tokens with keys and values of their own that all tokens of the list read, and
//   - of its own group: the first token (`kFirst`), those before it (`kBefore`) or all (`kAll`), and always itself.
// Tokens that are masked are read by nobody and get zeros. Queries are those of the last tokens of the list.
#pragma once

#include <cstdint>

namespace onerank {

enum class Reads { kFirst, kBefore, kAll };

// Tensors are dense: queries, out and their gradients are [batch, heads, queries, depth], keys and values [batch, heads,
// tokens, depth], those of the context [batch, heads, context, depth]; all of them float, or bfloat16. The masks are
// [batch, tokens] and [batch, context], true where a token is.
struct Attention {
  int64_t batch, heads, queries, tokens, context, depth;
  int64_t group_size;  // at least 1; a multiple of it is `tokens`
  Reads reads;
  bool bfloat16;
  const void *q, *k, *v, *context_k, *context_v;
  const bool *mask, *context_mask;
  const float* bias;  // [heads], added to the scores of a group's first token; with `kFirst` alone
  void* out;
  float* lse;  // [batch, heads, queries]: log2 of the sum of the exponentials of the scores
};

struct AttentionGradient {
  const void* grad_out;
  void *grad_q, *grad_k, *grad_v, *grad_context_k, *grad_context_v;
  float* grad_bias;  // [batch, heads], to be summed over the batch
};

// The deepest head, and the number of queries that a thread takes at the least.
constexpr int kMaxDepth = 128;
constexpr int kMinQueries = 48;

}  // namespace onerank

// What is built for several instruction sets, as functions of plain arrays.
#pragma once

#include "attention.h"
#include "rows.h"

namespace onerank {

// One build of the kernels. Their work is cut into units: of attention, forward, the queries of a head of a request in
// `chunks` parts, backward, a head of a request; of operations on rows, chunks of them. Units [begin, end) are done;
// different ones may run at once.
struct Kernels {
  const char* name;
  void (*attention_forward)(const Attention&, int64_t chunks, int64_t begin, int64_t end);
  void (*attention_backward)(const Attention&, const AttentionGradient&, int64_t begin, int64_t end);
  void (*gelu_forward)(const Gelu&, int64_t begin, int64_t end);
  void (*gelu_backward)(const Gelu&, const RowsGradient&, int64_t begin, int64_t end);
  void (*norm_forward)(const Norm&, int64_t begin, int64_t end);
  void (*norm_backward)(const Norm&, const RowsGradient&, int64_t begin, int64_t end);
};

// The fastest kernels that this processor runs; with the environment's ONERANK_INSTRUCTIONS those of that name.
const Kernels& BestKernels();

}  // namespace onerank

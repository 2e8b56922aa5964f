// The TensorFlow operations of structured attention: shapes, checks, and work for the pool of threads.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "kernels.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

// What this library was built against, for those who must know before they load it.
__attribute__((used)) const char kBuiltAgainst[] =
    "onerank built against TensorFlow " ONERANK_TENSORFLOW ";";

namespace onerank {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// The inputs of the forward pass, in the order in which both operations have them.
enum Input { kQueries, kKeys, kValues, kMask, kContextKeys, kContextValues, kContextMask, kBias, kInputs };
constexpr const char* kNames[] = {"queries",      "keys",           "values",       "mask",
                                  "context_keys", "context_values", "context_mask", "bias"};
constexpr const char* kAxes[] = {"B, H, Q, D", "B, H, M, D", "B, H, M, D", "B, M", "B, H, U, D", "B, H, U, D", "B, U", "H"};

Status Wrong(const std::string& what) { return tensorflow::errors::InvalidArgument(what); }

// Checks that inputs have the axes of their names, an axis having one size wherever it is. What is not known is right.
class ShapeCheck {
 public:
  // The sizes of an input's axes in turn; -1 is an unknown one.
  Status Add(int input, const std::vector<int64_t>& shape) {
    std::string axes, known, received;
    for (const char* axis = kAxes[input]; *axis; ++axis) {
      if (*axis != ',' && *axis != ' ') axes += *axis;
    }
    bool right = shape.size() == axes.size();
    for (size_t i = 0; right && i < axes.size(); ++i) {
      const auto found = sizes_.find(axes[i]);
      right = shape[i] < 0 || found == sizes_.end() || found->second == shape[i];
    }
    for (const char axis : axes) {
      const auto found = sizes_.find(axis);
      if (found == sizes_.end()) continue;
      known += (known.empty() ? " with " : ", ") + std::string(1, axis) + " = " + std::to_string(found->second);
    }
    for (const int64_t size : shape) received += (received.empty() ? "" : ", ") + (size < 0 ? "?" : std::to_string(size));
    if (!right) {
      return Wrong(std::string("`") + kNames[input] + "` should have the shape [" + kAxes[input] + "]" + known +
                   ". Received: [" + received + "].");
    }
    for (size_t i = 0; i < axes.size(); ++i) {
      if (shape[i] >= 0) sizes_.emplace(axes[i], shape[i]);
    }
    return Status();
  }

 private:
  std::map<char, int64_t> sizes_;
};

Status CheckInputs(InferenceContext* c) {
  ShapeCheck check;
  for (int input = 0; input < kInputs; ++input) {
    const ShapeHandle shape = c->input(input);
    if (!c->RankKnown(shape)) continue;
    std::vector<int64_t> sizes;
    for (int i = 0; i < c->Rank(shape); ++i) sizes.push_back(c->Value(c->Dim(shape, i)));
    TF_RETURN_IF_ERROR(check.Add(input, sizes));
  }
  return Status();
}

Status CheckInputs(OpKernelContext* c) {
  ShapeCheck check;
  for (int input = 0; input < kInputs; ++input) {
    const auto sizes = c->input(input).shape().dim_sizes();
    TF_RETURN_IF_ERROR(check.Add(input, std::vector<int64_t>(sizes.begin(), sizes.end())));
  }
  return Status();
}

REGISTER_OP("OneRankAttention")
    .Input("queries: T")
    .Input("keys: T")
    .Input("values: T")
    .Input("mask: bool")
    .Input("context_keys: T")
    .Input("context_values: T")
    .Input("context_mask: bool")
    .Input("bias: float")
    .Attr("T: {float, bfloat16}")
    .Attr("reads: {'first', 'before', 'all'}")
    .Attr("group_size: int")
    .Output("out: T")
    .Output("lse: float")
    .SetShapeFn([](InferenceContext* c) {
      TF_RETURN_IF_ERROR(CheckInputs(c));
      ShapeHandle queries, rows;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(kQueries), 4, &queries));
      TF_RETURN_IF_ERROR(c->Subshape(queries, 0, 3, &rows));
      c->set_output(0, queries);
      c->set_output(1, rows);
      return Status();
    })
    .Doc("Structured attention; see trainer/ops/structured_attention.py. A group_size of 0 is the whole list.");

REGISTER_OP("OneRankAttentionGrad")
    .Input("queries: T")
    .Input("keys: T")
    .Input("values: T")
    .Input("mask: bool")
    .Input("context_keys: T")
    .Input("context_values: T")
    .Input("context_mask: bool")
    .Input("bias: float")
    .Input("out: T")
    .Input("lse: float")
    .Input("grad_out: T")
    .Attr("T: {float, bfloat16}")
    .Attr("reads: {'first', 'before', 'all'}")
    .Attr("group_size: int")
    .Output("grad_queries: T")
    .Output("grad_keys: T")
    .Output("grad_values: T")
    .Output("grad_context_keys: T")
    .Output("grad_context_values: T")
    .Output("grad_bias: float")
    .SetShapeFn([](InferenceContext* c) {
      constexpr Input kOf[] = {kQueries, kKeys, kValues, kContextKeys, kContextValues, kBias};
      for (int i = 0; i < 6; ++i) c->set_output(i, c->input(kOf[i]));
      return Status();
    })
    .Doc("The gradient of OneRankAttention, from scores that are computed anew.");

// What both operations know of a call.
class AttentionOp : public OpKernel {
 public:
  explicit AttentionOp(OpKernelConstruction* c) : OpKernel(c) {
    std::string reads;
    OP_REQUIRES_OK(c, c->GetAttr("reads", &reads));
    OP_REQUIRES_OK(c, c->GetAttr("group_size", &group_size_));
    OP_REQUIRES(c, group_size_ >= 0, Wrong("`group_size` should be 0, for one group, or more. Received: " +
                                           std::to_string(group_size_) + "."));
    reads_ = reads == "first" ? Reads::kFirst : reads == "before" ? Reads::kBefore : Reads::kAll;
  }

 protected:
  Status Describe(OpKernelContext* c, Attention* a) const {
    TF_RETURN_IF_ERROR(CheckInputs(c));
    const TensorShape& queries = c->input(kQueries).shape();
    a->batch = queries.dim_size(0);
    a->heads = queries.dim_size(1);
    a->queries = queries.dim_size(2);
    a->depth = queries.dim_size(3);
    a->tokens = c->input(kKeys).dim_size(2);
    a->context = c->input(kContextKeys).dim_size(2);
    a->group_size = group_size_ > 0 ? group_size_ : std::max<int64_t>(a->tokens, 1);
    a->reads = reads_;
    a->bfloat16 = c->input(kQueries).dtype() == tensorflow::DT_BFLOAT16;
    const std::string tokens = std::to_string(a->tokens);
    if (a->depth < 1 || a->depth > kMaxDepth) {
      return Wrong("`queries` should have 1 <= D <= " + std::to_string(kMaxDepth) + ". Received: " +
                   std::to_string(a->depth) + ".");
    }
    if (a->tokens % a->group_size != 0) {
      return Wrong("`group_size` should divide the number of `keys`. Received: " + std::to_string(group_size_) + " for " +
                   tokens + " keys.");
    }
    if (a->queries > a->tokens || (group_size_ > 0 && a->queries != a->tokens)) {
      return Wrong("`queries` should be those of the last of the " + tokens + " keys, and of all with a `group_size`. " +
                   "Received: " + std::to_string(a->queries) + " queries.");
    }
    if (a->tokens + a->context > INT32_MAX) return Wrong("`keys` and `context_keys` are too long.");
    a->q = c->input(kQueries).data();
    a->k = c->input(kKeys).data();
    a->v = c->input(kValues).data();
    a->mask = static_cast<const bool*>(c->input(kMask).data());
    a->context_k = c->input(kContextKeys).data();
    a->context_v = c->input(kContextValues).data();
    a->context_mask = static_cast<const bool*>(c->input(kContextMask).data());
    a->bias = static_cast<const float*>(c->input(kBias).data());
    return Status();
  }

  // The multiplications of a query, for the pool to judge how many threads they are worth.
  static int64_t Cost(const Attention& a) {
    return (a.context + (a.reads == Reads::kFirst ? 2 : a.group_size)) * a.depth / 4 + 100;
  }

 private:
  int64_t group_size_;
  Reads reads_;
};

class ForwardOp : public AttentionOp {
 public:
  using AttentionOp::AttentionOp;

  void Compute(OpKernelContext* c) override {
    Attention a{};
    OP_REQUIRES_OK(c, Describe(c, &a));
    Tensor *out, *lse;
    OP_REQUIRES_OK(c, c->allocate_output(0, c->input(kQueries).shape(), &out));
    OP_REQUIRES_OK(c, c->allocate_output(1, TensorShape({a.batch, a.heads, a.queries}), &lse));
    if (out->NumElements() == 0) return;
    a.out = out->data();
    a.lse = lse->flat<float>().data();
    const auto* pool = c->device()->tensorflow_cpu_worker_threads();
    const int64_t heads = a.batch * a.heads, wanted = 8 * pool->num_threads;
    const int64_t chunks = std::clamp<int64_t>((wanted + heads - 1) / heads, 1, (a.queries + kMinQueries - 1) / kMinQueries);
    tensorflow::Shard(pool->num_threads, pool->workers, heads * chunks, Cost(a) * a.queries / chunks,
                      [&a, chunks](int64_t begin, int64_t end) { BestKernels().attention_forward(a, chunks, begin, end); });
  }
};

class BackwardOp : public AttentionOp {
 public:
  using AttentionOp::AttentionOp;

  void Compute(OpKernelContext* c) override {
    Attention a{};
    OP_REQUIRES_OK(c, Describe(c, &a));
    const TensorShape &queries = c->input(kQueries).shape(), &out = c->input(kInputs).shape(),
                      &lse = c->input(kInputs + 1).shape(), &grad_out = c->input(kInputs + 2).shape();
    OP_REQUIRES(c, out == queries, Wrong("`out` should have the shape of `queries`. Received: " + out.DebugString() + "."));
    OP_REQUIRES(c, lse == TensorShape({a.batch, a.heads, a.queries}),
                Wrong("`lse` should have the shape [B, H, Q] of `queries`. Received: " + lse.DebugString() + "."));
    OP_REQUIRES(c, grad_out == queries,
                Wrong("`grad_out` should have the shape of `queries`. Received: " + grad_out.DebugString() + "."));
    a.out = c->input(kInputs).data();
    a.lse = static_cast<float*>(c->input(kInputs + 1).data());
    AttentionGradient g{};
    g.grad_out = c->input(kInputs + 2).data();
    void** outputs[] = {&g.grad_q, &g.grad_k, &g.grad_v, &g.grad_context_k, &g.grad_context_v};
    constexpr Input kOf[] = {kQueries, kKeys, kValues, kContextKeys, kContextValues};
    for (int i = 0; i < 5; ++i) {
      Tensor* output;
      OP_REQUIRES_OK(c, c->allocate_output(i, c->input(kOf[i]).shape(), &output));
      *outputs[i] = output->data();
    }
    Tensor *grad_bias, grad_biases;
    OP_REQUIRES_OK(c, c->allocate_output(5, c->input(kBias).shape(), &grad_bias));
    OP_REQUIRES_OK(c, c->allocate_temp(tensorflow::DT_FLOAT, TensorShape({a.batch, a.heads}), &grad_biases));
    g.grad_bias = grad_biases.flat<float>().data();
    const auto* pool = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(pool->num_threads, pool->workers, a.batch * a.heads, 3 * Cost(a) * a.queries,
                      [&a, &g](int64_t begin, int64_t end) { BestKernels().attention_backward(a, g, begin, end); });
    for (int64_t h = 0; h < a.heads; ++h) {
      float sum = 0;
      for (int64_t b = 0; b < a.batch; ++b) sum += g.grad_bias[b * a.heads + h];
      grad_bias->flat<float>()(h) = sum;
    }
  }
};

REGISTER_KERNEL_BUILDER(Name("OneRankAttention").Device(DEVICE_CPU), ForwardOp);
REGISTER_KERNEL_BUILDER(Name("OneRankAttentionGrad").Device(DEVICE_CPU), BackwardOp);

}  // namespace
}  // namespace onerank

// The TensorFlow operations on rows: GELU with its bias, and layer norm.
#include <algorithm>
#include <string>

#include "kernels.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace onerank {
namespace {

constexpr int64_t kChunk = 256, kMostChunks = 64;  // the least rows of a chunk, but for the last; and the most chunks

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

Status OfInput(InferenceContext* c, std::initializer_list<int> inputs) {
  int output = 0;
  for (const int input : inputs) c->set_output(output++, c->input(input));
  return Status();
}

REGISTER_OP("OneRankGelu")
    .Input("x: T")
    .Input("bias: float")
    .Attr("T: {float, bfloat16}")
    .Output("out: T")
    .SetShapeFn([](InferenceContext* c) { return OfInput(c, {0}); })
    .Doc("gelu(x + bias), the exact one, of [..., n] and [n].");

REGISTER_OP("OneRankGeluGrad")
    .Input("x: T")
    .Input("bias: float")
    .Input("grad_out: T")
    .Attr("T: {float, bfloat16}")
    .Output("grad_x: T")
    .Output("grad_bias: float")
    .SetShapeFn([](InferenceContext* c) { return OfInput(c, {0, 1}); })
    .Doc("The gradient of OneRankGelu.");

REGISTER_OP("OneRankNorm")
    .Input("x: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Attr("T: {float, bfloat16}")
    .Attr("epsilon: float")
    .Output("out: T")
    .SetShapeFn([](InferenceContext* c) { return OfInput(c, {0}); })
    .Doc("Layer norm over the last axis of [..., n].");

REGISTER_OP("OneRankNormGrad")
    .Input("x: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("grad_out: T")
    .Attr("T: {float, bfloat16}")
    .Attr("epsilon: float")
    .Output("grad_x: T")
    .Output("grad_gamma: float")
    .Output("grad_beta: float")
    .SetShapeFn([](InferenceContext* c) { return OfInput(c, {0, 1, 2}); })
    .Doc("The gradient of OneRankNorm.");

Status CheckShape(OpKernelContext* c, int input, const char* name, const TensorShape& expected) {
  const TensorShape& received = c->input(input).shape();
  if (received == expected) return Status();
  return tensorflow::errors::InvalidArgument("`", name, "` should have the shape ", expected.DebugString(),
                                             ", as `x` has it. Received: ", received.DebugString(), ".");
}

// A row's operation: what it reads, and which of the kernels are its own.
class GeluOp : public OpKernel {
 public:
  using Arguments = Gelu;
  static constexpr const char* kVectors[] = {"bias"};
  static constexpr auto kForward = &Kernels::gelu_forward;
  static constexpr auto kBackward = &Kernels::gelu_backward;

  using OpKernel::OpKernel;

 protected:
  void Read(OpKernelContext* c, Gelu* a) const { a->bias = c->input(1).flat<float>().data(); }
};

class NormOp : public OpKernel {
 public:
  using Arguments = Norm;
  static constexpr const char* kVectors[] = {"gamma", "beta"};
  static constexpr auto kForward = &Kernels::norm_forward;
  static constexpr auto kBackward = &Kernels::norm_backward;

  explicit NormOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, c->GetAttr("epsilon", &epsilon_)); }

 protected:
  void Read(OpKernelContext* c, Norm* a) const {
    a->gamma = c->input(1).flat<float>().data();
    a->beta = c->input(2).flat<float>().data();
    a->epsilon = epsilon_;
  }

 private:
  float epsilon_;
};

template <class Op>
class RowsOp : public Op {
 public:
  using Op::Op;

 protected:
  static constexpr int kVectors = sizeof(Op::kVectors) / sizeof(Op::kVectors[0]);

  Status Describe(OpKernelContext* c, typename Op::Arguments* a) const {
    const Tensor& x = c->input(0);
    if (x.dims() < 1) return tensorflow::errors::InvalidArgument("`x` should have an axis. Received: a scalar.");
    a->width = x.dim_size(x.dims() - 1);
    a->rows = a->width > 0 ? x.NumElements() / a->width : 0;
    a->chunk = std::max(kChunk, (a->rows + kMostChunks - 1) / kMostChunks);
    a->sums = (a->width + 15) / 16 * 16;
    a->bfloat16 = x.dtype() == tensorflow::DT_BFLOAT16;
    a->x = x.data();
    for (int i = 0; i < kVectors; ++i) {
      TF_RETURN_IF_ERROR(CheckShape(c, 1 + i, Op::kVectors[i], TensorShape({a->width})));
    }
    this->Read(c, a);
    return Status();
  }

  static int64_t Chunks(const Rows& rows) { return (rows.rows + rows.chunk - 1) / rows.chunk; }

  template <class Work>
  static void Share(OpKernelContext* c, const Rows& rows, Work work) {
    const auto* pool = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(pool->num_threads, pool->workers, Chunks(rows), 4 * rows.width * rows.chunk, work);
  }
};

template <class Op>
class RowsForward : public RowsOp<Op> {
 public:
  using RowsOp<Op>::RowsOp;

  void Compute(OpKernelContext* c) override {
    typename Op::Arguments a{};
    OP_REQUIRES_OK(c, this->Describe(c, &a));
    Tensor* out;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, c->input(0).shape(), &out));
    a.out = out->data();
    this->Share(c, a, [&a](int64_t begin, int64_t end) { (BestKernels().*Op::kForward)(a, begin, end); });
  }
};

template <class Op>
class RowsBackward : public RowsOp<Op> {
 public:
  using RowsOp<Op>::RowsOp;

  void Compute(OpKernelContext* c) override {
    constexpr int kGradOut = 1 + RowsOp<Op>::kVectors;
    typename Op::Arguments a{};
    OP_REQUIRES_OK(c, this->Describe(c, &a));
    OP_REQUIRES_OK(c, CheckShape(c, kGradOut, "grad_out", c->input(0).shape()));
    RowsGradient g{};
    Tensor *grad_x, sums[2];
    g.grad_out = c->input(kGradOut).data();
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({kGradOut}, 0, c->input(0).shape(), &grad_x));
    g.grad_x = grad_x->data();
    const int64_t chunks = this->Chunks(a);
    float** const of_chunks[] = {&g.grad_first, &g.grad_second};
    for (int i = 0; i < RowsOp<Op>::kVectors; ++i) {
      OP_REQUIRES_OK(c, c->allocate_temp(tensorflow::DT_FLOAT, TensorShape({chunks, a.sums}), &sums[i]));
      *of_chunks[i] = sums[i].flat<float>().data();
    }
    this->Share(c, a, [&a, &g](int64_t begin, int64_t end) { (BestKernels().*Op::kBackward)(a, g, begin, end); });
    for (int i = 0; i < RowsOp<Op>::kVectors; ++i) {
      Tensor* sum;
      OP_REQUIRES_OK(c, c->allocate_output(1 + i, TensorShape({a.width}), &sum));
      float* to = sum->flat<float>().data();
      std::fill(to, to + a.width, 0.f);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* from = *of_chunks[i] + chunk * a.sums;
        for (int64_t d = 0; d < a.width; ++d) to[d] += from[d];
      }
    }
  }
};

REGISTER_KERNEL_BUILDER(Name("OneRankGelu").Device(DEVICE_CPU), RowsForward<GeluOp>);
REGISTER_KERNEL_BUILDER(Name("OneRankGeluGrad").Device(DEVICE_CPU), RowsBackward<GeluOp>);
REGISTER_KERNEL_BUILDER(Name("OneRankNorm").Device(DEVICE_CPU), RowsForward<NormOp>);
REGISTER_KERNEL_BUILDER(Name("OneRankNormGrad").Device(DEVICE_CPU), RowsBackward<NormOp>);

}  // namespace
}  // namespace onerank

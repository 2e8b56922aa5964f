// The kernels for one instruction set: the namespace ONERANK_KERNELS, vectors of ONERANK_LANES.
//
// Only what can't be shared with code that is built for other processors is included here: no templates of the library,
// and all else inside an unnamed namespace.

#include "kernels.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#if ONERANK_LANES > 4
#include <immintrin.h>
#endif

namespace onerank {
namespace ONERANK_KERNELS {
namespace {

#include "vectors.h"

#include "attention_kernels.h"
#include "row_kernels.h"

#define ONERANK_NAME_OF(kernels) #kernels
#define ONERANK_NAME(kernels) ONERANK_NAME_OF(kernels)

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    ONERANK_NAME(ONERANK_KERNELS), AttentionForward, AttentionBackward, GeluForward, GeluBackward, NormForward, NormBackward,
};

}  // namespace ONERANK_KERNELS
}  // namespace onerank

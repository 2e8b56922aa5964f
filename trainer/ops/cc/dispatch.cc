#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace onerank {

namespace plain {
extern const Kernels kKernels;
}
#ifdef ONERANK_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

const Kernels& BestKernels() {
  static const Kernels& best = []() -> const Kernels& {
    const char* asked = std::getenv("ONERANK_INSTRUCTIONS");
    const auto wanted = [asked](const Kernels& kernels) {
      return asked == nullptr || *asked == 0 || std::strcmp(asked, kernels.name) == 0;
    };
#ifdef ONERANK_X86
    if (wanted(avx512::kKernels) && __builtin_cpu_supports("avx512f")) return avx512::kKernels;
    if (wanted(avx2::kKernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return avx2::kKernels;
    }
#endif
    (void)wanted;
    return plain::kKernels;
  }();
  return best;
}

}  // namespace onerank

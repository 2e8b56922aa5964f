#include <cstdio>
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
    if (wanted(avx512::kKernels) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return avx512::kKernels;
    }
    if (wanted(avx2::kKernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
      return avx2::kKernels;
    }
#endif
    if (!wanted(plain::kKernels)) {
      std::fprintf(stderr, "ONERANK_INSTRUCTIONS: this processor has no kernels of the name %s. Use plain.\n", asked);
      std::abort();
    }
    return plain::kKernels;
  }();
  return best;
}

}  // namespace onerank

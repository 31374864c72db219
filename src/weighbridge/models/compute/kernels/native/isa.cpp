#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace weighbridge {

static const Isa all_isas[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::neon, Isa::portable};

const char *isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::neon: return "neon";
    default: return "portable";
  }
}

// __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
bool isa_supported(Isa isa) {
  switch (isa) {
#ifdef WB_HAS_avx2
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef WB_HAS_neon
    case Isa::neon:
      return true;  // part of every 64-bit Arm
#endif
    case Isa::portable:
      return true;
    default:
      return false;
  }
}

static Isa choose_isa() {
  const char *wanted = std::getenv("WEIGHBRIDGE_KERNELS");
  if (wanted == nullptr || *wanted == 0 || std::string(wanted) == "reference") {
    for (Isa isa : all_isas)
      if (isa_supported(isa)) return isa;
  }
  std::string names;
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    if (std::string(wanted) == isa_name(isa)) return isa;
    names += std::string(isa_name(isa)) + ", ";
  }
  throw std::invalid_argument("WEIGHBRIDGE_KERNELS=" + std::string(wanted) +
                              " is not possible on this machine; leave it out, or set it to one of: " + names +
                              "reference");
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace weighbridge

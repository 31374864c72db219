// Shared by every kernel source. The kernel sources are compiled once per instruction set (WB_ISA) and live in
// weighbridge::<isa>; everything else is compiled once, for the oldest CPU of the family.
//
// Rule for kernel sources: no std:: templates and no inline functions outside namespace WB_ISA. The linker
// keeps one copy of an inline function, and it could be the one compiled for AVX-512.
#pragma once

#include <cstdint>

namespace weighbridge {

enum class Isa { portable, neon, avx2, avx512, avx512_bf16 };

// Numbers the Python wrappers pass along with a data pointer. Activations are never int8, keys and values may be.
enum class Dtype : int { float32 = 0, bfloat16 = 1, int8 = 2 };

const char *isa_name(Isa isa);

// Compiled in, and this CPU and operating system can run it.
bool isa_supported(Isa isa);

// What the kernels of this process use: the best supported one, or the one named by WEIGHBRIDGE_KERNELS.
// Decided at the first call; throws std::invalid_argument if the name is unknown or not supported here.
Isa active_isa();

}  // namespace weighbridge

// WB_KERNEL_TABLE(Table, name), at global scope in the header of a kernel family, declares the constant `name`
// that each instruction set defines in its namespace, and `weighbridge::active_<name>()` that picks one.
#ifdef WB_ISA
#define WB_KERNEL_TABLE(Table, name) \
  namespace weighbridge::WB_ISA { extern const Table name; }
#else
#define WB_DECLARE_TABLE(isa, Table, name) \
  namespace weighbridge::isa { extern const Table name; }
#define WB_CASE_TABLE(isa, name) \
  case Isa::isa: return isa::name;
#ifdef WB_HAS_avx2
#define WB_X86(...) __VA_ARGS__
#else
#define WB_X86(...)
#endif
#ifdef WB_HAS_neon
#define WB_ARM(...) __VA_ARGS__
#else
#define WB_ARM(...)
#endif
#define WB_KERNEL_TABLE(Table, name)                                                           \
  WB_DECLARE_TABLE(portable, Table, name)                                                      \
  WB_X86(WB_DECLARE_TABLE(avx2, Table, name) WB_DECLARE_TABLE(avx512, Table, name)             \
             WB_DECLARE_TABLE(avx512_bf16, Table, name))                                       \
  WB_ARM(WB_DECLARE_TABLE(neon, Table, name))                                                  \
  namespace weighbridge {                                                                      \
  inline const Table &active_##name() {                                                        \
    switch (active_isa()) {                                                                    \
      WB_X86(WB_CASE_TABLE(avx2, name) WB_CASE_TABLE(avx512, name) WB_CASE_TABLE(avx512_bf16, name)) \
      WB_ARM(WB_CASE_TABLE(neon, name))                                                        \
      default: return portable::name;                                                          \
    }                                                                                          \
  }                                                                                            \
  }
#endif

//! What the processor says of itself. The applier runs on the same one as the target.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID (Intel SDM, volume 2).
pub(crate) fn cpuid(leaf: u32, part: u32) -> CpuidResult {
    // SAFETY: every 64-bit x86 processor has the instruction; it changes nothing.
    #[allow(unused_unsafe, reason = "newer compilers take it for safe")]
    unsafe {
        __cpuid_count(leaf, part)
    }
}

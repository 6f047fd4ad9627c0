//! Calls of indirect functions (`STT_GNU_IFUNC`) that the target has bound nowhere yet, such as the first `strstr` of a
//! program.
//!
//! Which implementation fits the processor only the function's resolver says, and it is code of the target: it runs when
//! new code calls the function, in the thread that calls, as with lazy binding. A *chooser* saves every register in which
//! arguments may come (those of the vector unit too, as the processor has them), asks the resolver, puts all back and goes
//! where that said. It keeps no state, so there is nothing to write, no thread waits for another one, and an applier may
//! die at any time. A call costs some hundred cycles more.
//!
//! ```text
//! chooser: movabs $resolver,%r11; jmp common
//! common:  save; call *%r11; mov %rax,%r11; restore; jmp *%r11
//! ```
//!
//! R11 belongs to nobody between a call and its function (psABI for AMD64, 3.2.3). The applier runs on the target's
//! processor, so it knows how much XSAVE saves.

use crate::addr::LiveAddr;
use crate::prelude::*;
use crate::sys;

/// Length of one chooser.
pub(crate) const CHOOSER_SIZE: u64 = 16;
/// Length of what all choosers of a payload share.
pub(crate) const COMMON_SIZE: u64 = 192;

/// XSAVE's components in which arguments come: SSE, AVX, and the three of AVX-512 (Intel SDM, volume 1, 13.1).
const COMPONENTS: u32 = 0b1110_0110;
/// The area that XSAVE always writes: the legacy part and the header.
const SMALLEST: u32 = 512 + 64;

/// The chooser at `at` of the function with this resolver; `None` if the common part is out of reach.
pub(crate) fn code(at: LiveAddr, resolver: LiveAddr, common: LiveAddr) -> Option<[u8; CHOOSER_SIZE as usize]> {
    let distance = i32::try_from(common.0.wrapping_sub(at.plus(15).0) as i64).ok()?;
    let mut code = [0xcc; CHOOSER_SIZE as usize];
    code[..2].copy_from_slice(&[0x49, 0xbb]);
    code[2..10].copy_from_slice(&resolver.0.to_le_bytes());
    code[10] = 0xe9;
    code[11..15].copy_from_slice(&distance.to_le_bytes());
    Some(code)
}

/// The common part for this processor.
pub(crate) fn common() -> Vec<u8> {
    let mut code = common_for(saved_size());
    code.resize(COMMON_SIZE as usize, 0xcc);
    code
}

/// `size`: of XSAVE's area; `None` for a processor without it.
fn common_for(size: Option<u32>) -> Vec<u8> {
    // push %rbp; mov %rsp,%rbp; push rax, rcx, rdx, rsi, rdi, r8, r9, r10
    let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x50, 0x51, 0x52, 0x56, 0x57, 0x41, 0x50, 0x41, 0x51, 0x41, 0x52];
    // sub $size,%rsp; and $-64,%rsp
    code.extend([0x48, 0x81, 0xec]);
    code.extend(size.unwrap_or(512).next_multiple_of(64).to_le_bytes());
    code.extend([0x48, 0x83, 0xe4, 0xc0]);
    let mask = |code: &mut Vec<u8>| {
        // mov $COMPONENTS,%eax; xor %edx,%edx
        code.push(0xb8);
        code.extend(COMPONENTS.to_le_bytes());
        code.extend([0x31, 0xd2]);
    };
    match size {
        Some(_) => {
            // The header must be zero where XSAVE does not write it: xor %eax,%eax; mov %rax,512+8n(%rsp)
            code.extend([0x31, 0xc0]);
            for word in 0..8u32 {
                code.extend([0x48, 0x89, 0x84, 0x24]);
                code.extend((512 + 8 * word).to_le_bytes());
            }
            mask(&mut code);
            code.extend([0x48, 0x0f, 0xae, 0x24, 0x24]); // xsave64 (%rsp)
        }
        None => code.extend([0x48, 0x0f, 0xae, 0x04, 0x24]), // fxsave64 (%rsp)
    }
    code.extend([0x41, 0xff, 0xd3, 0x49, 0x89, 0xc3]); // call *%r11; mov %rax,%r11
    match size {
        Some(_) => {
            mask(&mut code);
            code.extend([0x48, 0x0f, 0xae, 0x2c, 0x24]); // xrstor64 (%rsp)
        }
        None => code.extend([0x48, 0x0f, 0xae, 0x0c, 0x24]), // fxrstor64 (%rsp)
    }
    // lea -64(%rbp),%rsp; pop r10, r9, r8, rdi, rsi, rdx, rcx, rax, rbp; jmp *%r11
    code.extend([0x48, 0x8d, 0x65, 0xc0, 0x41, 0x5a, 0x41, 0x59, 0x41, 0x58, 0x5f, 0x5e, 0x5a, 0x59, 0x58, 0x5d]);
    code.extend([0x41, 0xff, 0xe3]);
    code
}

/// How long XSAVE's area is for the components; `None` if the processor or the kernel does not offer it
/// (Intel SDM, volume 2, CPUID leaves 1 and 13).
fn saved_size() -> Option<u32> {
    const OSXSAVE: u32 = 1 << 27;
    if sys::cpuid(1, 0).ecx & OSXSAVE == 0 {
        return None;
    }
    let known = sys::cpuid(13, 0).eax & COMPONENTS;
    let ends = (2..32).filter(|n| known >> n & 1 == 1).map(|n| sys::cpuid(13, n)).map(|part| part.ebx + part.eax);
    Some(ends.fold(SMALLEST, u32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_their_places() {
        assert!(common_for(Some(4096)).len() as u64 <= COMMON_SIZE);
        assert_eq!(common().len() as u64, COMMON_SIZE);
        let code = code(LiveAddr(0x1000), LiveAddr(0x1122_3344_5566_7788), LiveAddr(0x2000)).unwrap();
        assert_eq!(code[2..10], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(i32::from_le_bytes(code[11..15].try_into().unwrap()), 0x2000 - 0x100f);
    }

    #[test]
    fn the_area_holds_what_the_processor_has() {
        let size = saved_size().unwrap_or(512);
        assert!((512..16384).contains(&size), "{size}");
    }
}

//! The memory of the small applier: blocks of powers of two, reused; large ones straight from the kernel.
//!
//! Freed blocks are kept by size for the next one of that size, so a run over many targets needs what the largest
//! of them needs. A thread that finds it in use gives its turn away until it is not.

use super::raw;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, Ordering};
use linux_raw_sys::general as nr;

/// Smallest block: 16 bytes, so that every block is aligned for anything.
const SMALLEST: u32 = 4;
/// Largest block that is not a mapping of its own.
const LARGEST: u32 = 16;
const CHUNK: usize = 1 << 18;

struct State {
    /// First free block of each size; its first word leads to the next.
    free: [*mut u8; (LARGEST + 1) as usize],
    /// What is left of the current chunk.
    rest: *mut u8,
    len: usize,
}

/// The allocator.
#[derive(Debug)]
pub struct Heap {
    state: UnsafeCell<State>,
    in_use: AtomicBool,
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Heap")
    }
}

// SAFETY: whoever uses the state has found it unused, in one step that says so (`with`).
unsafe impl Sync for Heap {}

impl Heap {
    /// Without any memory yet.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Heap {
        let state = State { free: [null_mut(); (LARGEST + 1) as usize], rest: null_mut(), len: 0 };
        Heap { state: UnsafeCell::new(state), in_use: AtomicBool::new(false) }
    }

    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        while self.in_use.swap(true, Ordering::Acquire) {
            // SAFETY: the call is given no pointer.
            let _ = unsafe { raw::call(nr::__NR_sched_yield, [0; 6]) };
        }
        // SAFETY: nobody else uses it, and the work calls nobody.
        let result = work(unsafe { &mut *self.state.get() });
        self.in_use.store(false, Ordering::Release);
        result
    }
}

/// Power of two of the block for a layout; `None`: a mapping of its own.
fn class(layout: Layout) -> Option<u32> {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST);
    Some(size.checked_next_power_of_two()?.trailing_zeros()).filter(|&class| class <= LARGEST)
}

fn map(len: usize) -> *mut u8 {
    let access = u64::from(nr::PROT_READ | nr::PROT_WRITE);
    let kind = u64::from(nr::MAP_PRIVATE | nr::MAP_ANONYMOUS);
    // SAFETY: new memory, where nothing is.
    let mapped = unsafe { raw::call(nr::__NR_mmap, [0, len as u64, access, kind, u64::MAX, 0]) };
    mapped.map_or(null_mut(), |at| at as *mut u8)
}

impl State {
    fn take(&mut self, class: u32) -> *mut u8 {
        let size = 1usize << class;
        let first = self.free[class as usize];
        if !first.is_null() {
            // SAFETY: a free block holds the address of the next one.
            self.free[class as usize] = unsafe { first.cast::<*mut u8>().read() };
            return first;
        }
        // Blocks lie at multiples of their size.
        let skip = self.rest.align_offset(size);
        if self.rest.is_null() || self.len < skip.saturating_add(size) {
            self.rest = map(CHUNK);
            self.len = if self.rest.is_null() { 0 } else { CHUNK };
            let skip = self.rest.align_offset(size);
            if self.len < skip.saturating_add(size) {
                return null_mut();
            }
        }
        let skip = self.rest.align_offset(size);
        // SAFETY: both are within what is left of the chunk.
        let block = unsafe { self.rest.add(skip) };
        // SAFETY: the same.
        self.rest = unsafe { block.add(size) };
        self.len -= skip + size;
        block
    }
}

// SAFETY: blocks are as large and as aligned as asked for (mappings are aligned to pages, and nobody asks for more),
// and none is given out twice before it is given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => self.with(|state| state.take(class)),
            None if layout.align() > 4096 => null_mut(),
            None => map(layout.size()),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else {
            // SAFETY: the caller gives back a mapping of this size.
            let _ = unsafe { raw::call(nr::__NR_munmap, [block as u64, layout.size() as u64, 0, 0, 0, 0]) };
            return;
        };
        self.with(|state| {
            // SAFETY: the block is ours again, and large and aligned enough for an address.
            unsafe { block.cast::<*mut u8>().write(state.free[class as usize]) };
            state.free[class as usize] = block;
        });
    }
}

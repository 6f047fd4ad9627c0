//! A thread of its own for one piece of work, without a C library: made, run and waited for by one system call.
//!
//! `clone(2)` with `CLONE_VFORK` holds the caller up until the new thread has ended, so there is nothing to share
//! and nothing to lock: at any time one of the two runs. What the thread traces comes free with its end.

use super::{Errno, raw};
use core::arch::asm;
use linux_raw_sys::general as nr;

const STACK: u64 = 1 << 20;
const GUARD: u64 = 4096;
const FLAGS: u32 = nr::CLONE_VM
    | nr::CLONE_VFORK
    | nr::CLONE_FS
    | nr::CLONE_FILES
    | nr::CLONE_SIGHAND
    | nr::CLONE_THREAD
    | nr::CLONE_SYSVSEM;

/// Memory for a stack, with an inaccessible page below.
struct Stack(u64);

impl Stack {
    fn new() -> Result<Stack, Errno> {
        let access = u64::from(nr::PROT_READ | nr::PROT_WRITE);
        let kind = u64::from(nr::MAP_PRIVATE | nr::MAP_ANONYMOUS);
        // SAFETY: new memory, where nothing is.
        let stack = Stack(unsafe { raw::call(nr::__NR_mmap, [0, STACK, access, kind, u64::MAX, 0]) }?);
        // SAFETY: the first page of that memory, which nobody uses.
        unsafe { raw::call(nr::__NR_mprotect, [stack.0, GUARD, 0, 0, 0, 0]) }?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: nobody stands on it any more.
        let _ = unsafe { raw::call(nr::__NR_munmap, [self.0, STACK, 0, 0, 0, 0]) };
    }
}

/// Work to be done, and then what came of it.
struct Job<F, T> {
    work: Option<F>,
    result: Option<T>,
}

extern "C" fn entry<T, F: FnOnce() -> T>(job: *mut Job<F, T>) {
    // SAFETY: the job lives in the frame of `run_on_its_own`, which waits, and nobody else refers to it.
    let job = unsafe { &mut *job };
    job.result = job.work.take().map(|work| work());
}

/// Does some work on a new thread and waits for it. A panic in it must end the process.
pub(crate) fn run_on_its_own<T: Send, F: FnOnce() -> T + Send>(work: F) -> Result<T, Errno> {
    let stack = Stack::new()?;
    let mut job = Job { work: Some(work), result: None };
    let result: i64;
    // SAFETY: The new thread runs on its own stack, which stays until it has ended; it calls `entry` and ends
    // itself, so it never comes back from here. We go on only then (CLONE_VFORK), so what it did to our
    // memory happened during this statement.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "mov eax, {exit}",
            "xor edi, edi",
            "syscall",
            "ud2",
            "2:",
            exit = const nr::__NR_exit,
            inlateout("rax") i64::from(nr::__NR_clone) => result,
            in("rdi") u64::from(FLAGS),
            in("rsi") stack.0 + STACK,
            in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") entry::<T, F> as extern "C" fn(*mut Job<F, T>),
            in("r13") &raw mut job,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    match result {
        error @ -4095..=-1 => Err(Errno(-error as u16)),
        _ => job.result.ok_or(Errno::ENDED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_another_thread_and_its_result_comes_back() {
        let own = std::process::id();
        let text = std::fs::read_link("/proc/thread-self").unwrap();
        let there = run_on_its_own(|| crate::sys::read_link("/proc/thread-self").unwrap()).unwrap();
        assert_ne!(there, text.as_os_str().as_encoded_bytes());
        assert!(there.starts_with(std::format!("{own}/task/").as_bytes()));
        for n in 0..100 {
            assert_eq!(run_on_its_own(move || n + 1), Ok(n + 1));
        }
    }
}

//! A thread of its own for one piece of work, without a C library; the caller waits for it, and looks after something
//! else meanwhile.
//!
//! The kernel clears a word of the caller's and wakes it when the thread has ended (`clone(2)`, `CLONE_CHILD_CLEARTID`).
//! What the thread traces comes free with its end.

use super::{Errno, raw};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use linux_raw_sys::general as nr;

const STACK: u64 = 1 << 20;
const GUARD: u64 = 4096;
const FLAGS: u32 = nr::CLONE_VM
    | nr::CLONE_FS
    | nr::CLONE_FILES
    | nr::CLONE_SIGHAND
    | nr::CLONE_THREAD
    | nr::CLONE_SYSVSEM
    | nr::CLONE_PARENT_SETTID
    | nr::CLONE_CHILD_CLEARTID;

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

/// Does some work on a new thread and waits for it; `meanwhile` is called about every `tick` as long as it is not done.
/// A panic in either must end the process.
pub(crate) fn run_on_its_own<T: Send, F: FnOnce() -> T + Send>(
    work: F,
    tick: Duration,
    meanwhile: &mut dyn FnMut(),
) -> Result<T, Errno> {
    let stack = Stack::new()?;
    let mut job = Job { work: Some(work), result: None };
    let job = &raw mut job;
    let lives = AtomicU32::new(0);
    let result: i64;
    // SAFETY: The new thread runs on its own stack, which stays until it has ended; it calls `entry` and ends
    // itself, so it never comes back from here. Until it has ended nobody else touches the job, and `lives` is
    // written by the kernel alone, before we go on (CLONE_PARENT_SETTID) and when it ends.
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
            in("rdx") lives.as_ptr(), in("r10") lives.as_ptr(), in("r8") 0,
            in("r12") entry::<T, F> as extern "C" fn(*mut Job<F, T>),
            in("r13") job,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if let error @ -4095..=-1 = result {
        return Err(Errno(-error as u16));
    }
    let time = [tick.as_secs(), u64::from(tick.subsec_nanos())];
    loop {
        let tid = lives.load(Ordering::Acquire);
        if tid == 0 {
            break;
        }
        let arguments = [lives.as_ptr() as u64, u64::from(nr::FUTEX_WAIT), tid.into(), time.as_ptr() as u64, 0, 0];
        // SAFETY: the word is alive, and `time` has the layout of a timespec.
        if unsafe { raw::call(nr::__NR_futex, arguments) } == Err(Errno::ETIMEDOUT) {
            meanwhile();
        }
    }
    // SAFETY: the thread has ended.
    unsafe { (*job).result.take() }.ok_or(Errno::ENDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        run_on_its_own(work, Duration::from_secs(60), &mut || {}).unwrap()
    }

    #[test]
    fn work_is_done_on_another_thread_and_its_result_comes_back() {
        let own = std::process::id();
        let text = std::fs::read_link("/proc/thread-self").unwrap();
        let there = alone(|| crate::sys::read_link("/proc/thread-self").unwrap());
        assert_ne!(there, text.as_os_str().as_encoded_bytes());
        assert!(there.starts_with(std::format!("{own}/task/").as_bytes()));
        for n in 0..100 {
            assert_eq!(alone(move || n + 1), n + 1);
        }
    }

    #[test]
    fn somebody_looks_after_things_meanwhile() {
        let looked = AtomicU32::new(0);
        let three = || {
            while looked.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
            "done"
        };
        let mut look = || {
            looked.fetch_add(1, Ordering::SeqCst);
        };
        assert_eq!(run_on_its_own(three, Duration::from_millis(1), &mut look), Ok("done"));
    }
}
